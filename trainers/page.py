"""The page of a training run: OUT/report.html from its metrics alone, static, without scripts. It loads no torch."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.log import read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2024; max-width: 1040px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin: 2em 0 .5em } .dim { color: #667 }
figure { display: inline-block; margin: 0 1em 1em 0 } figcaption { font-weight: 600 }
svg text { font: 11px system-ui, sans-serif; fill: #667 }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #ccd } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f8fa; padding: .7em; margin: .3em 0 1em }
pre b { font-weight: 400; color: #2f7d5b }
"""
COLOURS = ("#2f7d5b", "#c0392b", "#2b5fa8", "#d9912b", "#7a4fa3", "#667788")
Line = list[tuple[float, float]]


def write_page(out: str, extra: Sequence[tuple[str, str]] = ()) -> str:
    """Write OUT/report.html; `extra` are (heading, HTML) sections of a caller's own. Returns its path."""
    path = Path(out, "report.html")
    path.write_text(page(out, extra), encoding="utf-8")
    return str(path)


def page(out: str, extra: Sequence[tuple[str, str]] = ()) -> str:
    """Curves of loss, evaluation, rate, gradient norm and speed; figures at the end; alarms; samples."""
    lines = read_metrics(out)
    trained = [line for line in lines if "loss" in line]
    measured = [line for line in lines if any(name.startswith("validation") for name in line)]
    names = sorted({name for line in measured for name in line if _number(line[name]) and name != "step"})
    curves: dict[str, Line] = {"training": thinned([(line["step"], line["loss"]) for line in trained])}
    plain = [name for name in names if name.startswith("validation") and not name.endswith("_bpb")]
    curves |= {name: _curve(measured, name) for name in plain}
    plots = [plot("loss (nats per token)", curves)]
    bits = [name for name in names if name.endswith("_bpb")]
    if bits:
        plots.append(plot("bits per byte", {name.removesuffix("_bpb"): _curve(measured, name) for name in bits}))
    for name in names:
        if name not in plain and name not in bits:
            plots.append(plot(name, {name: _curve(measured, name)}))
    for name in ("rate", "grad_norm", "tokens_per_second", "mfu"):
        points = thinned(_curve(trained, name))
        if points:
            plots.append(plot(name.replace("_", " "), {name: points}))
    if _is_range(out):
        plots.insert(0, _found_rate(trained))
    parts = [f"<h1>{html.escape(Path(out).name)}</h1>", _summary(lines, trained), *plots]
    parts += [_table(measured, names), _alarms(lines), _samples(lines)]
    parts += [f"<h2>{html.escape(heading)}</h2>{body}" for heading, body in extra]
    recipe = Path(out, "recipe.yaml")
    if recipe.is_file():
        parts.append(f"<h2>Recipe</h2><pre>{html.escape(yaml.safe_dump(yaml.safe_load(recipe.read_text())))}</pre>")
    return static_page(Path(out).name, "".join(parts), heading=False)


def static_page(title: str, body: str, *, heading: bool = True) -> str:
    """A whole page around a body, in the style of all pages of this side."""
    title = html.escape(title)
    top = f"<h1>{title}</h1>" if heading else ""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<body>{top}{body}'


def suggested_rate(trained: Sequence[dict[str, Any]]) -> float | None:
    """A tenth of the rate at which the smoothed loss of a `range` run is lowest; None with less than 10 steps.

    Smoothing: exponential, 0.9, without bias. The lowest loss lies late, where the rate is about to be too high: hence
    the tenth, a rule of thumb. Continue a run with `schedule: {shape: range}` to find the rate for new data.
    """
    if len(trained) < 10:
        return None
    mean, best = 0.0, (math.inf, 0.0)
    for number, line in enumerate(trained, 1):
        mean = 0.9 * mean + 0.1 * line["loss"]
        if number >= 5:
            best = min(best, (mean / (1 - 0.9**number), line["rate"]))
    return best[1] / 10


def rate_found(out: str) -> float | None:
    """What `suggested_rate` says of a run's folder, None where the run was no search for a rate or too short."""
    return suggested_rate([line for line in read_metrics(out) if "loss" in line]) if _is_range(out) else None


def _is_range(out: str) -> bool:
    recipe = Path(out, "recipe.yaml")
    return recipe.is_file() and (yaml.safe_load(recipe.read_text()).get("schedule") or {}).get("shape") == "range"


def _found_rate(trained: Sequence[dict[str, Any]]) -> str:
    rate = suggested_rate(trained)
    if rate is None:
        return "<p>Too few steps to find a rate: 10 or more are needed.</p>"
    drawn = plot("loss against rate", {"loss": [(line["rate"], line["loss"]) for line in trained]}, logarithmic=True)
    return f"<p>Suggested rate: {rate:.2e}, a tenth of that with the lowest smoothed loss.</p>{drawn}"


def plot(title: str, curves: dict[str, Line], *, logarithmic: bool = False, points: bool = False) -> str:
    """An SVG of named curves over one axis; `points` draws dots without lines, `logarithmic` spreads the x axis."""
    curves = {name: [(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)] for name, line in curves.items()}
    curves = {name: line for name, line in curves.items() if line}
    if not curves:
        return ""

    def across(x: float) -> float:
        return math.log10(max(x, 1e-12)) if logarithmic else x

    xs = [across(x) for line in curves.values() for x, _ in line]
    # the first steps of a training curve would flatten all the rest
    ys = sorted(y for line in curves.values() for _, y in line)
    low, high = ys[0], ys[min(len(ys) - 1, int(len(ys) * 0.97))]
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = 0.0 if 0 <= low < pad else low - pad  # a rate or a share is not drawn below zero
    high, left, right = high + pad, min(xs), max(xs)
    wide, tall, edge = 470, 250, 58

    def at(x: float, y: float) -> str:
        share = (across(x) - left) / ((right - left) or 1.0)
        up = (min(y, high) - low) / (high - low)
        return f"{edge + share * (wide - edge - 12):.1f},{tall - 26 - up * (tall - 40):.1f}"

    def label(y: float) -> str:
        largest = max(abs(low), abs(high))
        if largest >= 10_000:
            return f"{y / 1e6:.4g}M" if largest >= 1e6 else f"{y / 1e3:.4g}k"
        return f"{y:.1e}" if 0 < largest < 0.01 else f"{y:.4g}"

    marks = []
    for i in range(5):
        y = low + (high - low) * i / 4
        height = tall - 26 - i / 4 * (tall - 40)
        marks.append(f'<line x1="{edge}" x2="{wide - 12}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e4e6ea"/>')
        marks.append(f'<text x="{edge - 6}" y="{height + 4:.1f}" text-anchor="end">{label(y)}</text>')
    for i in range(3):
        x = left + (right - left) * i / 2
        place = edge + i / 2 * (wide - edge - 12)
        anchor = ("start", "middle", "end")[i]
        text = f"{10**x if logarithmic else x:.4g}"
        marks.append(f'<text x="{place:.1f}" y="{tall - 8}" text-anchor="{anchor}">{text}</text>')
    legend = []
    for number, (name, line) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(x, y) for x, y in line]
        if not points:
            marks.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{" ".join(places)}"/>')
        if points or len(places) <= 40:
            for spot in places:
                left_of, top = spot.split(",")
                marks.append(f'<circle cx="{left_of}" cy="{top}" r="2.6" fill="{colour}"/>')
        legend.append(f'<span style="color:{colour}">● {html.escape(name)}</span>')
    shown = f"<div class=dim>{' '.join(legend)}</div>" if len(curves) > 1 else ""
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{shown}"
        f'<svg width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}">{"".join(marks)}</svg></figure>'
    )


def thinned(line: Line, most: int = 400) -> Line:
    """At most `most` points, each the mean of its neighbours: a long run stays readable and its page small."""
    size = max(1, -(-len(line) // most))
    groups = [line[i : i + size] for i in range(0, len(line), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve(lines: Sequence[dict[str, Any]], name: str) -> Line:
    return [(line["step"], line[name]) for line in lines if _number(line.get(name))]


def _summary(lines: Sequence[dict[str, Any]], trained: Sequence[dict[str, Any]]) -> str:
    if not trained:
        return "<p>No step was trained.</p>"
    last, seconds = trained[-1], sum(line["seconds"] for line in trained)
    figures = [f"{last['step']:,} steps", f"{last['tokens']:,} tokens", f"{seconds:,.0f} s in steps"]
    figures.append(f"last loss {last['loss']:.4f}")
    for name, text in (("memory_expected_gib", "expected"), ("memory_peak_gib", "used")):
        found = [line[name] for line in lines if name in line]
        if found:
            figures.append(f"memory {text} {found[-1]:.1f} GiB")
    return f"<p class=dim>{' · '.join(figures)}</p>"


def _table(measured: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    if not measured:
        return ""
    rows = []
    for name in names:
        line = _curve(measured, name)
        best = min if name.startswith("validation") else max
        chosen = best(y for _, y in line)
        rows.append(f"<tr><td>{html.escape(name)}<td class=n>{line[-1][1]:.4f}<td class=n>{chosen:.4f}")
    head = "<tr><th>figure<th class=n>at the end<th class=n>best"
    return f"<h2>Evaluation</h2><table>{head}{''.join(rows)}</table>"


def _alarms(lines: Sequence[dict[str, Any]]) -> str:
    found = [line for line in lines if "alarm" in line]
    if not found:
        return ""
    rows = []
    for line in found:
        worst = "<br>".join(
            f"row {one['row']}: loss {one['loss']:.4f}, {html.escape(', '.join(one['documents']))}"
            for one in line.get("worst", [])
        )
        rows.append(
            f"<tr><td class=n>{line['step']}<td>{html.escape(line['alarm'])}<td>{line['rows'][0]} to "
            f"{line['rows'][1] - 1}<td>{worst}"
        )
    head = "<tr><th class=n>step<th>what<th>rows<th>worst of them, and their documents"
    return f"<h2>Alarms</h2><table>{head}{''.join(rows)}</table>"


def _samples(lines: Sequence[dict[str, Any]]) -> str:
    """The first, a middle and the last set of samples: what the model learned to say."""
    found = [line for line in lines if line.get("samples")]
    if not found:
        return ""
    parts = ["<h2>Samples</h2>"]
    for line in [found[i] for i in sorted({0, len(found) // 2, len(found) - 1})]:
        parts.append(f"<p class=dim>step {line['step']}</p>")
        parts += [f"<pre><b>{html.escape(s['prompt'])}</b>{html.escape(s['text'])}</pre>" for s in line["samples"]]
    return "".join(parts)
