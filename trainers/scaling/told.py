"""`corpusmill scale …` for people: calls the functions of command.py and sweep.py, prints their answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import DataError, RecipeError

if TYPE_CHECKING:
    from trainers.scaling.emergence import Studied


def scale(options: argparse.Namespace) -> int:
    """Carry out one action of `corpusmill scale`; the exit code."""
    for line in ACTIONS[options.action](options):
        print(line)
    return 0


def _columns(options: argparse.Namespace) -> dict[str, str]:
    """What --column says: {"loss": "val_loss"}."""
    from trainers.scaling.table import NAMES

    named = {}
    for text in options.column:
        key, sign, name = text.partition("=")
        if not sign or key not in NAMES:
            raise RecipeError(f"--column {text}: expected KEY=COLUMN, where KEY is one of {', '.join(NAMES)}")
        named[key] = name
    return named


def _written(options: argparse.Namespace, found: Any) -> list[str]:
    """The answer as JSON where --out says so, and a line about it."""
    if not options.out:
        return []
    Path(options.out).write_text(json.dumps(found) + "\n", encoding="utf-8")
    return [f"written to  {options.out}"]


def _fit(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_law
    from trainers.scaling.law import open_ones

    found = fit_law(
        options.file,
        drop_worst=options.drop_worst,
        tied=options.tied,
        where=options.where,
        columns=_columns(options),
    )
    values = {**found["law"], "exponent": found["exponent"]}
    lines = [f"L(N, D) = E + A/N^alpha + B/D^beta over {found['runs']} runs; objective {found['objective']:.6g}"]
    lines.append("columns     " + ", ".join(f"{key}: {name}" for key, name in found["columns"].items()))
    if found["left_out"]:
        lines.append(f"left out    {found['left_out']} rows that equal another one in every cell")
    if found["repeating"]:
        lines.append(
            f"repeated    {found['repeating']} runs saw tokens again, which this law takes for new ones: see `scale "
            "repeated`"
        )
    for name, (low, high) in found["intervals"].items():
        spread = "not determined" if name in found["undetermined"] else f"95 % {low:.5g} to {high:.5g}"
        lines.append(f"  {name:<9} {values[name]:>10.5g}   {spread}")
    lines.append("  (exponent: of compute in the best N)")
    lines.append(f"off by      {found['error']['mean']:.2%} on average, {found['error']['largest']:.2%} at most")
    return [*lines, *open_ones(found["undetermined"]), *_written(options, found)]


def _isoflop(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_isoflop

    found = fit_isoflop(options.file, options.method, options.where, _columns(options))
    sizes, losses = found["sizes"], found["losses"]
    spread = "two budgets tell no interval"
    if sizes["interval"]:
        spread = "exponent 95 % {:.4f} to {:.4f}".format(*sizes["interval"])
    lines = [
        f"best N = {sizes['coefficient']:.4g} · C^{sizes['exponent']:.4f}   (R² {sizes['r2']:.4f}; {spread})",
        f"its loss = {losses['coefficient']:.4g} · C^{losses['exponent']:.4f}   (R² {losses['r2']:.4f})",
    ]
    lines += [f"  C {v['flops']:.3g}: N {v['parameters']:.4g}, loss {v['loss']:.4f}" for v in found["valleys"]]
    return [*lines, *_written(options, found)]


def _kaplan(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_single

    found = fit_single(options.file, options.where, _columns(options))
    lines = ["L = (scale / x)^exponent through the runs that no smaller x beats"]
    for name, law in found.items():
        low, high = law["interval"]
        lines.append(
            f"  {name:<10} exponent {law['exponent']:.4f}   95 % {low:.4f} to {high:.4f}   scale {law['scale']:.4g}   "
            f"R² {law['r2']:.4f}   {law['points']} of {law['values']} values"
        )
    lines += [
        f"{name}: losses without any order give as many with probability {law['chance']:.0%}; read nothing into it"
        for name, law in found.items()
        if law["chance"] > 0.05
    ]
    return [*lines, *_written(options, found)]


def _repeated(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_repeated
    from trainers.scaling.law import open_ones

    before = None if options.law is None else _law(options.law)
    found = fit_repeated(options.file, before, options.where, _columns(options))
    law = "   ".join(f"{name} {value:.5g}" for name, value in found["law"].items())
    lines = [f"{found['runs']} runs, {found['repeating']} of them with repeated data; held against {law}"]
    for name, sign, told in (
        ("data_decay", "R_D*", "passes over the same tokens after which more are worth little"),
        ("size_decay", "R_N*", "the same for parameters beyond what the unique tokens call for"),
    ):
        low, high = found["intervals"][name]
        lines.append(f"  {sign} {found[name]:.4g}   95 % {low:.4g} to {high:.4g}   ({told})")
    lines.append(f"  mean absolute error {found['error']['nats']:.4f} nats")
    return [*lines, *open_ones(found["undetermined"]), *_written(options, found)]


def _emergence(options: argparse.Namespace) -> list[str]:
    from cluster.page import document
    from trainers.scaling.emergence import study_files

    found = study_files(options.file, options.runs, options.scale, options.task, options.where)
    lines = [f"{'task':<40} {'verdict':<8} {'half at':>9} {'gain':>7} {'scatter':>7} {'10-90 %':>8} {'smooth':>7}"]
    for row in found.rows:
        soft = "" if row["smooth_width"] is None else f"{row['smooth_width']:.0%}"
        place = "" if row["verdict"] == "none" else f"{row['at']:.3g}"
        lines.append(
            f"{row['task']!s:<40.40} {row['verdict']:<8} {place:>9} {row['gain']:>7.3g} {row['scatter']:>7.2g} "
            f"{row['width']:>8.0%} {soft:>7}"
        )
    lines += [
        f"10-90 %: the part of the axis ({found.scale}, logarithmic) that most of the rise takes",
        "smooth: the same of the smooth metric",
        "sudden: at most 30 %, and far beyond the scatter between models; unclear: so, but within it;",
        "apparent: sudden, while the smooth metric rises evenly; none: a rise below .1",
    ]
    if options.out:
        body = "".join(_drawn(found, str(row["task"])) for row in found.rows)
        body = f"<h1>Emergence</h1><pre>{_escaped(lines)}</pre>{body}"
        Path(options.out).write_text(document("emergence · corpusmill", body), encoding="utf-8")
    return lines


def _drawn(found: Studied, task: str) -> str:
    """The task's metric and, beside it, its smooth one."""
    from trainers.page import plot

    names = [task, *([found.smooth[task]] if task in found.smooth else [])]
    return "".join(
        plot(name, {name: found.values[name]}, across=found.scale, logarithmic=True, points=True) for name in names
    )


def _escaped(lines: list[str]) -> str:
    import html

    return html.escape("\n".join(lines))


def _law(path: str) -> dict[str, Any]:
    from trainers.scaling.command import PUBLISHED
    from trainers.scaling.law import Law

    if path in PUBLISHED:
        return PUBLISHED[path]
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        found = found.get("fit", found)  # a sweep.json holds one, too
        Law(**found["law"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: not a law; write one with `corpusmill scale fit TABLE --out law.json`, or name a published one: "
            f"{', '.join(PUBLISHED)}"
        ) from None
    return found


def _plan(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import plan
    from trainers.scaling.law import open_ones

    found = plan(
        _law(options.file),
        flops=options.flops,
        parameters=options.parameters,
        tokens=options.tokens,
        unique_tokens=options.unique_tokens,
    )
    lines = []
    for name, form in (("parameters", ".4g"), ("tokens", ".4g"), ("loss", ".4f")):
        low, high = found["intervals"][name]
        given = name != "loss" and options.flops is None
        spread = "" if given or low == high else f"   95 % {low:{form}} to {high:{form}}"
        lines.append(f"{name:<11} {found[name]:{form}}{spread}")
    lines.append(f"compute     {found['flops']:.4g} FLOP, {found['tokens_per_parameter']:.1f} tokens per parameter")
    if found["extrapolates"]:
        lines.append(f"outside of the runs that were fitted: {', '.join(found['extrapolates'])}")
    return [*lines, *open_ones(found["undetermined"]), *_written(options, found)]


def _compare(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import predicted_against_measured

    if not options.runs:
        raise RecipeError("scale compare: give the law and a table of runs")
    rows = predicted_against_measured(_law(options.file), options.runs, options.where, _columns(options))
    lines = [f"{'parameters':>12} {'tokens':>12} {'predicted':>10} {'measured':>9} {'error':>8}"]
    for row in rows:
        lines.append(
            f"{row['parameters']:>12.4g} {row['tokens']:>12.4g} {row['predicted']:>10.4f} {row['measured']:>9.4f}"
            f" {row['error']:>+8.2%}"
        )
    off = [abs(row["error"]) for row in rows]
    lines.append(f"off by {sum(off) / len(off):.2%} on average, {max(off):.2%} at most")
    return [*lines, *_written(options, rows)]


def _sweep(options: argparse.Namespace) -> list[str]:
    from rich.console import Console

    from trainers.scaling.sweep import load_sweep, summary, sweep

    if not options.out:
        raise RecipeError("scale sweep: give --out, the folder of its runs")
    found = sweep(load_sweep(options.file, options.assignments), options.out, Console())
    return [*summary(found), f"report      {Path(options.out, 'report.html')}"]


def _shape(options: argparse.Namespace) -> list[str]:
    from rich.console import Console

    from trainers.scaling.shape import load_shapes, study, summary

    if not options.out:
        raise RecipeError("scale shape: give --out, the folder of its runs")
    found = study(load_shapes(options.file, options.assignments), options.out, Console())
    return [*summary(found), f"report      {Path(options.out, 'report.html')}"]


ACTIONS = {
    "fit": _fit, "isoflop": _isoflop, "kaplan": _kaplan, "repeated": _repeated, "plan": _plan, "compare": _compare,
    "sweep": _sweep, "shape": _shape, "emergence": _emergence,
}  # fmt: skip
