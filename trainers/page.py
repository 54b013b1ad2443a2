"""The page of a training run: OUT/report.html from its metrics alone, static, without scripts. It loads no torch."""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.page import document, table
from trainers.log import read_metrics

Line = list[tuple[float, float]]
_COLOURS = 6
_UNITS = {
    "rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "mfu": "MFU (share of the peak FLOP/s)",
    "reward": "reward",
    "kl": "KL to the reference (nats per answer)",
    "kl_weight": "weight of the KL",
    "entropy": "entropy (nats per token)",
    "sampled_entropy": "entropy of what was sampled (nats per token)",
    "answer_tokens": "length of answers (tokens)",
    "finished": "share of answers that ended by themselves",
    "clipped": "share of tokens with a clipped ratio",
    "rollout_seconds": "drawing answers (seconds)",
    "scoring_seconds": "scoring answers (seconds)",
    "accuracy": "accuracy (share of items)",
    "sparsity": "sparsity (share of weights that are 0)",
}
_OWN = ("step", "loss", "seconds", "tokens", "row", "wait_share", "rate", "grad_norm", "tokens_per_second", "mfu")
_FIRST = ("reward", "accuracy", "kl", "answer_tokens")
_LOSS_OF_TOKENS = ("pretrain", "sft", "distill")


def write_page(out: str, extra: Sequence[tuple[str, str]] = ()) -> str:
    """Write OUT/report.html; `extra` are (heading, HTML) sections of a caller's own. Returns its path."""
    path = Path(out, "report.html")
    path.write_text(page(out, extra), encoding="utf-8")
    return str(path)


def page(out: str, extra: Sequence[tuple[str, str]] = ()) -> str:
    """Curves of loss, evaluation, what the algorithm logs, rate, gradient norm, speed; alarms; samples; the recipe."""
    lines = read_metrics(out)
    recipe = _recipe(out)
    trainer = recipe.get("trainer", "pretrain")
    trained = [line for line in lines if "loss" in line]
    measured = [line for line in lines if any(_is_measured(name) for name in line)]
    names = sorted({name for line in measured for name in line if _number(line[name]) and name != "step"})
    plots = _curves(trained, measured, names, trainer)
    if _is_range(recipe):
        plots.insert(0, _found_rate(trained))
    title = f"{Path(out).resolve().parent.name}/{Path(out).resolve().name}"
    parts = [f"<h1>{html.escape(title)} <small>{html.escape(trainer)}</small></h1>", _summary(lines, trained), *plots]
    parts += [_table(measured, names), _alarms(lines), _samples(lines)]
    parts += [f"<h2>{html.escape(heading)}</h2>{body}" for heading, body in extra]
    if recipe:
        given = {name: value for name, value in recipe.items() if value not in (None, {}, [])}
        parts.append(f"<h2>Recipe</h2><pre>{html.escape(yaml.safe_dump(given, sort_keys=False))}</pre>")
    return document(f"{title} · {trainer} · corpusmill", "".join(parts))


def _curves(
    trained: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]], names: Sequence[str], trainer: str
) -> list[str]:
    """A plot per figure; what was measured on held-out data lies over the same figure in training."""
    bits = [name for name in names if name.endswith("_bpb")]
    losses = ["validation"] if "validation" in names else []
    if trainer in _LOSS_OF_TOKENS:
        losses = [name for name in names if name.startswith("validation") and name not in bits and "/" not in name]
    unit = "loss (nats per token)" if trainer in _LOSS_OF_TOKENS else "loss"
    curves: dict[str, Line] = {"training": thinned(_curve(trained, "loss"))}
    plots = [plot(unit, curves | {name: _curve(measured, name) for name in losses})]
    if bits:
        # after a place for the training curve, so that a data set has one colour in both plots
        of_sets = {name.removesuffix("_bpb"): _curve(measured, name) for name in bits}
        plots.append(plot("bits per byte", {"training": [], **of_sets}))
    grouped: dict[str, dict[str, Line]] = {}
    for name in names:
        column, slash, value = name.partition("/")
        if slash and name.startswith("validation"):
            grouped.setdefault(column, {})[value] = _curve(measured, name)
    for column, curves in grouped.items():
        told = column.removeprefix("validation_").removesuffix("_bpb").replace("_", " ")
        figure = "bits per byte" if column.endswith("_bpb") else unit
        plots.append(plot(f"held out by {told}: {figure}", curves))
    left = [name for name in names if name not in losses and name not in bits and name.partition("/")[0] not in grouped]
    logged = dict.fromkeys(name for line in trained for name in line)
    for name in sorted(logged, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        if name not in _OWN and any(_number(line.get(name)) for line in trained):
            curves = {"training": thinned(_curve(trained, name))}
            if f"validation_{name}" in left:
                left.remove(f"validation_{name}")
                curves["held out"] = _curve(measured, f"validation_{name}")
            plots.append(plot(_told(name), curves))
    plots += [plot(_told(name), {name: _curve(measured, name)}) for name in left]
    plots += [plot(_told(name), {name: thinned(_curve(trained, name))}) for name in _OWN[-4:]]
    return [drawn for drawn in plots if drawn]


def _is_measured(name: str) -> bool:
    return name.startswith("validation") or "_accuracy" in name


def _told(name: str) -> str:
    """The title of a figure's plot."""
    if name in _UNITS:
        return _UNITS[name]
    role, _, rest = name.partition("_")
    if role in ("critic", "validation") and rest:
        return f"{'held out' if role == 'validation' else role}: {_told(rest)}"
    return name.replace("_", " ")


def _recipe(out: str) -> dict[str, Any]:
    path = Path(out, "recipe.yaml")
    found = yaml.safe_load(path.read_text()) if path.is_file() else None
    return found if isinstance(found, dict) else {}


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
    return suggested_rate([line for line in read_metrics(out) if "loss" in line]) if _is_range(_recipe(out)) else None


def _is_range(recipe: Mapping[str, Any]) -> bool:
    return (recipe.get("schedule") or {}).get("shape") == "range"


def _found_rate(trained: Sequence[dict[str, Any]]) -> str:
    rate = suggested_rate(trained)
    if rate is None:
        return "<p>Too few steps to find a rate: 10 or more are needed.</p>"
    curve = [(line["rate"], line["loss"]) for line in trained]
    drawn = plot("loss against rate", {"loss": curve}, across="learning rate", logarithmic=True)
    return f"<p>Suggested rate: {rate:.2e}, a tenth of that with the lowest smoothed loss.</p>{drawn}"


def plot(
    title: str, curves: dict[str, Line], *, across: str = "step", logarithmic: bool = False, points: bool = False
) -> str:
    """An SVG of named curves over one axis, which `across` names; `points` draws dots without lines, `logarithmic`
    spreads the x axis. What lies far above the rest (the first steps of a training curve would flatten all others) is
    drawn on the upper edge, and the caption says how high it is."""
    curves = {name: [(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)] for name, line in curves.items()}
    colours = {name: number for number, name in enumerate(curves)}
    curves = {name: line for name, line in curves.items() if line}
    if not curves:
        return ""

    def placed(x: float) -> float:
        return math.log10(max(x, 1e-12)) if logarithmic else x

    xs = [placed(x) for line in curves.values() for x, _ in line]
    ys = sorted(y for line in curves.values() for _, y in line)
    low, high = ys[0], ys[min(len(ys) - 1, int(len(ys) * 0.97))]
    if ys[-1] - high < high - low:
        high = ys[-1]  # near enough to be shown
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = 0.0 if 0 <= low < pad else low - pad  # a rate or a share is not drawn below zero
    high, left, right = high + pad, min(xs), max(xs)
    above = len(ys) - bisect_right(ys, high)
    wide, tall, edge, foot = 470, 266, 58, 42

    def at(x: float, y: float) -> tuple[float, float]:
        share = (placed(x) - left) / (right - left) if right > left else 0.5
        up = (min(y, high) - low) / (high - low)
        return edge + share * (wide - edge - 12), tall - foot - up * (tall - foot - 14)

    marks = []
    for y, label in _ticks(low, high, 5):
        height = at(0, y)[1]
        marks.append(f'<line class="grid" x1="{edge}" x2="{wide - 12}" y1="{height:.1f}" y2="{height:.1f}"/>')
        marks.append(f'<text x="{edge - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
    whole = all(float(x).is_integer() for x in xs)  # steps and rounds: there is nothing between two of them
    for x, label in _decades(left, right) if logarithmic else _ticks(left, right, 6, least=1.0 if whole else 0.0):
        place = at(x, low)[0]
        marks.append(f'<text x="{place:.1f}" y="{tall - foot + 15}" text-anchor="middle">{label}</text>')
    marks.append(f'<text x="{(wide + edge) / 2 - 6}" y="{tall - 6}" text-anchor="middle">{html.escape(across)}</text>')
    legend = []
    for name, line in curves.items():
        number = colours[name]
        colour = f"var(--c{number % _COLOURS})"
        # more curves than colours: the next round is dashed
        dashes = (";stroke-dasharray:5 3", ";stroke-dasharray:2 2")[(number // _COLOURS - 1) % 2]
        dashes = dashes if number >= _COLOURS else ""
        places = [at(x, y) for x, y in line]
        if not points:
            drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            marks.append(f'<polyline style="fill:none;stroke:{colour};stroke-width:1.6{dashes}" points="{drawn}"/>')
        if points or len(places) <= 40:
            for (x, y), (step, value) in zip(places, line, strict=True):
                told = f"<title>{html.escape(name)}: {value:.6g} at {step:.6g}</title>"
                marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{colour}">{told}</circle>')
        dotted = "◌" if dashes else "●"
        legend.append(f'<span style="color:{colour};white-space:nowrap">{dotted} {html.escape(name)}</span>')
    caption = html.escape(title)
    if above:
        caption += f" <small class=dim>{above} above the edge, up to {ys[-1]:.4g}</small>"
    shown = f"<div class=dim>{' '.join(legend)}</div>" if len(curves) > 1 else ""
    return (
        f"<figure><figcaption>{caption}</figcaption>{shown}"
        f'<svg width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}" role="img">{"".join(marks)}</svg></figure>'
    )


def _ticks(low: float, high: float, most: int, least: float = 0.0) -> list[tuple[float, str]]:
    """Round values from low to high, at most `most` and two at least, with labels that tell them apart; `least` from
    each to the next."""
    if high <= low:
        return [(low, _label(low, abs(low) or 1.0, abs(low) or 1.0))]
    power = 10.0 ** math.floor(math.log10(high - low)) / 10
    for step in (power * size for size in (1, 2, 2.5, 5, 10, 20, 25, 50, 100)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most and step >= least:
            break
    largest = max(abs(low), abs(high))
    return [(number * step, _label(number * step, step, largest)) for number in range(first, last + 1)]


def _decades(left: float, right: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis, from exponents: powers of ten, with 2 and 5 between them where there are few,
    and round values where even those are less than two."""
    within = [
        digit * 10.0**power
        for power in range(math.floor(left), math.ceil(right) + 1)
        for digit in ((1, 2, 5) if right - left < 2.5 else (1,))
        if left - 1e-9 <= math.log10(digit * 10.0**power) <= right + 1e-9
    ]
    if len(within) < 2:
        return _ticks(10**left, 10**right, 6)
    return [(value, _label(value, value, value)) for value in within]


def _label(value: float, step: float, largest: float) -> str:
    """A tick's text; `step` decides how many digits are needed, `largest` the unit."""
    if abs(value) < step * 1e-6:
        return "0"
    if largest < 0.01 or largest >= 1e15:
        power = math.floor(math.log10(largest))
        return f"{_plain(value / 10.0**power, step / 10.0**power)}e{power}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 10 * size or (unit != "k" and largest >= size):
            return f"{_plain(value / size, step / size)}{unit}"
    return _plain(value, step)


def _plain(value: float, step: float) -> str:
    """As many decimals as tell two steps apart."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1  # 2.5, 0.25
    return f"{value:.{decimals}f}"


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
        best = None
        column, slash, value = name.partition("/")
        if name == "validation" or column.endswith("_bpb") or f"{column}_bpb{slash}{value}" in names:
            best = min(y for _, y in line)
        elif "accuracy" in name or "reward" in name or name.endswith("margin"):
            best = max(y for _, y in line)
        told = "" if best is None else f"{best:.4f}"
        rows.append(f"<tr><td>{html.escape(name)}<td class=n>{line[-1][1]:.4f}<td class=n>{told}")
    return f"<h2>Evaluation</h2>{table('<th>figure<th class=n>at the end<th class=n>best', rows)}"


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
    head = "<th class=n>step<th>what<th>rows<th>worst of them, and their documents"
    return f"<h2>Alarms</h2>{table(head, rows)}"


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
