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


def _fit(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import COEFFICIENTS, fit_law
    from trainers.scaling.law import UNDETERMINED, Law

    found = fit_law(options.file, drop_worst=options.drop_worst, where=options.where)
    if options.out:
        Path(options.out).write_text(json.dumps(found))
    values = {**found["law"], "exponent": found["exponent"]}
    lines = [f"L(N, D) = E + A/N^alpha + B/D^beta over {found['runs']} runs; objective {found['objective']:.6g}"]
    for name in COEFFICIENTS:
        low, high = found["intervals"][name]
        lines.append(f"  {name:<9} {values[name]:>10.5g}   95 % {low:.5g} to {high:.5g}")
    if not Law(**found["law"]).determined:
        lines.append(f"  {UNDETERMINED}")
    lines.append("  (exponent: of compute in the best N)" + (f"; written to {options.out}" if options.out else ""))
    return lines


def _isoflop(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_isoflop

    found = fit_isoflop(options.file, options.method, options.where)
    if options.out:
        Path(options.out).write_text(json.dumps(found))
    sizes, losses = found["sizes"], found["losses"]
    lines = [
        f"best N = {sizes['coefficient']:.4g} · C^{sizes['exponent']:.4f}   (R² {sizes['r2']:.4f})",
        f"its loss = {losses['coefficient']:.4g} · C^{losses['exponent']:.4f}   (R² {losses['r2']:.4f})",
    ]
    lines += [f"  C {v['flops']:.3g}: N {v['parameters']:.4g}, loss {v['loss']:.4f}" for v in found["valleys"]]
    return lines


def _kaplan(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_single

    found = fit_single(options.file, options.where)
    if options.out:
        Path(options.out).write_text(json.dumps(found))
    lines = ["L = (scale / x)^exponent through the runs that no smaller x beats"]
    for name, law in found.items():
        lines.append(
            f"  {name:<10} exponent {law['exponent']:.4f}   scale {law['scale']:.4g}   R² {law['r2']:.4f} over "
            f"{law['points']:g} runs"
        )
    return lines


def _repeated(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import fit_repeated

    before = None if options.law is None else {"law": "c4"} if options.law == "c4" else _law(options.law)
    found = fit_repeated(options.file, before, options.where)
    if options.out:
        Path(options.out).write_text(json.dumps(found))
    law = "   ".join(f"{name} {value:.5g}" for name, value in found["law"].items())
    wild = [name for name in ("data_decay", "size_decay") if not 1e-2 < found[name] < 1e3]
    doubt = [f"  {' and '.join(wild)} are not determined by these runs: do their losses fit the law?"] if wild else []
    return [
        f"{found['runs']} runs, {found['repeating']} of them with repeated data; held against {law}",
        f"  R_D* {found['data_decay']:.4g}   (passes over the same tokens after which more are worth little)",
        f"  R_N* {found['size_decay']:.4g}   (the same for parameters beyond what the unique tokens call for)",
        *doubt,
        f"  mean absolute error {found['error']:.4f} nats" + (f"; written to {options.out}" if options.out else ""),
    ]


def _emergence(options: argparse.Namespace) -> list[str]:
    from cluster.page import document
    from trainers.scaling.emergence import study_files

    found = study_files(options.file, options.runs, options.scale, options.task, options.where)
    lines = [f"{'task':<40} {'verdict':<9} {'rise at':>9} {'10-90 %':>8} {'breakthrough':>13} {'smooth 10-90 %':>15}"]
    for row in found.rows:
        verdict = "apparent" if row["apparent"] else "sudden" if row["sudden"] else "even"
        soft = "none" if row["smooth_width"] is None else f"{row['smooth_width']:.0%}"
        lines.append(
            f"{row['task']!s:<40.40} {verdict:<9} {row['at']:>9.3g} {row['width']:>8.0%} "
            f"{row['breakthroughness']:>13.1f} {soft:>15}"
        )
    lines += [
        f"10-90 %: the part of the axis ({found.scale}, logarithmic) over which most of the rise comes",
        "sudden: at most 30 % of it for a rise of .1 or more; apparent: sudden, while the smooth metric rises evenly",
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
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        _ = found["law"]
    except (OSError, ValueError, KeyError):
        raise DataError(f"{path}: not a law; write one with `corpusmill scale fit TABLE --out law.json`") from None
    return found


def _plan(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import plan

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
    return lines


def _compare(options: argparse.Namespace) -> list[str]:
    from trainers.scaling.command import predicted_against_measured

    if not options.runs:
        raise RecipeError("scale compare: give the law and a table of runs")
    rows = predicted_against_measured(_law(options.file), options.runs)
    lines = [f"{'parameters':>12} {'tokens':>12} {'predicted':>10} {'measured':>9} {'error':>8}"]
    for row in rows:
        lines.append(
            f"{row['parameters']:>12.4g} {row['tokens']:>12.4g} {row['predicted']:>10.4f} {row['measured']:>9.4f}"
            f" {row['error']:>+8.2%}"
        )
    return lines


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
