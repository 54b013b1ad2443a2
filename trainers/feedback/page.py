"""The page of `corpusmill feedback`: OUT/report.html from what is in OUT/report.json, static. It loads no torch."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.page import document, table
from trainers.page import Line, plot

SAID = {
    "agreed": "pairs with the same answer preferred in both orders; only these are kept",
    "agreement": "agreed, of all pairs",
    "position_bias": "share of verdicts for the answer shown first, less one half; 0 is fair",
    "accuracy": "of verdicts, both orders apart; a reply without an answer is wrong",
    "accuracy_agreed": "of the pairs on which both orders agree",
    "correct_both": "pairs that are right in both orders",
    "ties": "pairs with another answer preferred in each order",
    "unreadable": "pairs with a reply that names no answer",
    "gold": "pairs with a label by people",
    "same_as_real": "share of answers that are the real ones already",
    "mean_score": "the model's own mean score of its answers",
    "agreement: pairs": "share of held-out pairs that the model's scores rank as people do",
    "agreement: exact": "share of held-out answers with people's very score, rounded",
    "agreement: error": "mean distance from people's score",
}
"""What a figure is, where its name does not say it."""


def page(action: str, found: Any, out: str, recipe: Mapping[str, Any]) -> str:
    """Curves and a table of one action's result (the content of report.json), and its recipe."""
    if action in ("select", "solve"):
        body = _against_n(found)
    elif isinstance(found, list):
        body = _rounds(found, out)
    else:
        body = _figures(found, out)
    title = Path(out).resolve().name
    text = html.escape(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
    head = f"<h1>{html.escape(title)} <small>{html.escape(action.replace('_', ' '))}</small></h1>"
    return document(f"{title} · {action} · corpusmill", f"{head}{body}<h2>Recipe</h2><pre>{text}</pre>")


def _against_n(lines: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by answers per problem and by tokens, each way a curve or a point."""
    by_answers: dict[str, Line] = {}
    by_tokens: dict[str, Line] = {}
    for line in lines:
        by_answers.setdefault(line["method"], []).append((line["n"], line["accuracy"]))
        if line["tokens"] is not None:
            by_tokens.setdefault(line["method"], []).append((max(line["tokens"], 1.0), line["accuracy"]))
    repeated = {name: line for name, line in by_answers.items() if len(line) > 1}
    drawn = plot("accuracy against answers", repeated, across="answers per problem", logarithmic=True)
    drawn += plot("accuracy against tokens", by_tokens, across="tokens per problem", logarithmic=True)
    order = list(by_answers)
    rows = [
        f"<tr><td>{html.escape(line['method'])}<td class=n>{line['n']}<td class=n>{100 * line['accuracy']:.2f} %"
        f"<td class=n>{'' if line['tokens'] is None else format(line['tokens'], ',.1f')}"
        for line in sorted(lines, key=lambda line: order.index(line["method"]))
    ]
    head = "<th>way<th class=n>answers<th class=n>right<th class=n>tokens per problem"
    return drawn + table(head, rows)


def _rounds(rounds: Sequence[Mapping[str, Any]], out: str) -> str:
    """A row per round with a link to its training; a plot per figure where there are three rounds or more."""
    flat = [_flat(one) for one in rounds]
    names = list(dict.fromkeys(name for one in flat for name, value in one.items() if not isinstance(value, str)))
    drawn = ""
    for name in names:
        line = [(float(number), one[name]) for number, one in enumerate(flat) if isinstance(one.get(name), int | float)]
        drawn += plot(_words(name), {name: line}, across="round") if len(line) > 2 else ""
    rows = []
    for number, one in enumerate(flat):
        cells = "".join(f"<td class=n>{_told(one.get(name))}" for name in names)
        rows.append(f"<tr><td>{_linked(str(number), f'round-{number}/run', out)}{cells}")
    head = "<th>round" + "".join(f"<th class=n>{html.escape(_words(name))}" for name in names)
    notes = "".join(f"<li>{html.escape(_words(name))}: {SAID[name]}" for name in names if name in SAID)
    last = [str(one["model"]) for one in flat if "model" in one]
    ends = f"<p class=dim>last model: <code>{html.escape(last[-1])}</code></p>" if last else ""
    return f"{table(head, rows)}<ul class=dim>{notes}</ul>{drawn}{ends}"


def _figures(found: Mapping[str, Any], out: str) -> str:
    """A table of figures; parts that are trainings link to their own pages."""
    rows = []
    for name, value in _flat(found).items():
        part, _, rest = name.partition(": ")
        shown = _linked(_words(part), part, out) + (f": {html.escape(_words(rest))}" if rest else "")
        said = SAID.get(rest or part, "")
        rows.append(f"<tr><td>{shown}<td class=n>{_told(value)}<td class=dim>{said}")
    return table("<th>figure<th class=n>value<th>", rows)


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name; what is itself a mapping becomes "name: part", of a course over steps the last one."""
    out: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            steps = [key for key in value if str(key).isdigit()]
            if steps:
                out[name] = value[max(steps, key=int)]
            else:
                out |= {f"{name}: {part}": one for part, one in _flat(value).items()}
        elif value is not None and not isinstance(value, list):
            out[name] = value
    return out


def _words(name: str) -> str:
    return name.replace("_", " ")


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def _linked(text: str, folder: str, out: str) -> str:
    """The text, as a link where a training has its page below OUT."""
    if not Path(out, folder, "report.html").is_file():
        return html.escape(text)
    return f'<a href="{html.escape(folder)}/report.html">{html.escape(text)}</a>'
