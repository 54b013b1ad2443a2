"""Measure a scaling law on one's own data: small runs, a fit, a prediction, the larger run, and how far off it was.

Per model size one trunk runs at the stable rate over the longest token count; every shorter count branches off its
trunk and decays. So k token counts cost one trunk and k decays instead of k runs. Or the compute is fixed instead: with
`budgets`, every size runs for as many steps as its budget lasts, and the best size is read from the IsoFLOP curves.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster import storage
from cluster.errors import DataError, RecipeError
from cluster.page import document, table
from cluster.settings import Settings, assign, make, read_yaml, refuse_other
from pipeline.schema import DATASET_FILE
from trainers.page import plot
from trainers.recipe import TrainRecipe, from_mapping
from trainers.scaling.law import Law, open_ones
from trainers.train import TrainReport, train
from trainers.workers import Crew, crewed

if TYPE_CHECKING:
    from rich.console import Console


def check_base(base: Mapping[str, Any], study: str) -> None:
    """Refuse a base recipe with settings that the study varies. Raises RecipeError."""
    wrong = [name for name in ("model", "steps", "tokens", "epochs", "continue") if name in base]
    if wrong:
        raise RecipeError(f"{study}: base sets {', '.join(wrong)}, which the {study} itself sets")


class Sweep(Settings):
    """A `scale sweep` recipe: a training recipe whose model and length vary."""

    base: dict[str, Any] = Field(description="training recipe without model, steps, tokens, epochs")
    models: list[dict[str, Any]] = Field(min_length=2, description="model settings, one per size")
    steps: list[int] | None = Field(
        None, min_length=2, description="lengths in optimiser steps, the same for every size; or give budgets"
    )
    budgets: list[float] | None = Field(
        None, min_length=2, description="compute in FLOP (6 N D): every size runs once per budget, for IsoFLOP curves"
    )
    decay: float = Field(0.2, gt=0, lt=1, description="share of each length that is decay")
    rates: list[float] | None = Field(None, description="peak rate per size; None: the base recipe's for all")
    predict: dict[str, Any] | None = Field(
        None, description="larger run: {model: {…}, steps: n, rate: r, recipe: {further fields of its recipe}}"
    )
    fitted: str | None = Field(
        None, description="sweep.json of a sweep that was done before: its law is used and only the larger run trained"
    )
    samples: int = Field(200, gt=0, description="bootstrap samples of the fit")

    def check(self) -> None:
        """Refuse what cannot give a law. Raises RecipeError."""
        if (self.steps is None) == (self.budgets is None):
            raise RecipeError("sweep: give either steps (fixed sizes, more data) or budgets (fixed compute)")
        lengths: list[float] = [*(self.steps or self.budgets or [])]
        kind, least = ("lengths", 2) if self.steps else ("budgets", 1)
        if min(lengths) < least or len(set(lengths)) < len(lengths):
            raise RecipeError(f"sweep: {kind} {lengths} must be different, and {least} or more")
        if len(self.models) * len(lengths) < 6:
            raise RecipeError(
                f"sweep: {len(self.models)} sizes x {len(lengths)} {kind} are {len(self.models) * len(lengths)} "
                "runs; the law has 5 coefficients and needs 6 or more"
            )
        if self.budgets and len(self.models) < 3:
            raise RecipeError(f"sweep: an IsoFLOP curve needs 3 or more models, found {len(self.models)}")
        if self.rates is not None and len(self.rates) != len(self.models):
            raise RecipeError(f"sweep: {len(self.rates)} rates for {len(self.models)} models")
        if self.fitted and not Path(self.fitted).is_file():
            raise RecipeError(f"sweep: fitted: no file {self.fitted}; expected the sweep.json of a finished sweep")
        if self.fitted and self.predict is None:
            raise RecipeError("sweep: fitted takes a law from before, and predict: null leaves nothing to train")
        check_base(self.base, "sweep")


def load_sweep(path: str, changes: Sequence[str] = ()) -> Sweep:
    """The sweep in a YAML file with `path.to.field=value` changes applied. Raises RecipeError."""
    raw = read_yaml(path)
    refuse_other(raw, path, "scale sweep")
    for change in changes:
        assign(raw, change)
    made = make(Sweep, raw, path)
    made.check()
    return made


@dataclass(frozen=True)
class Point:
    """One measured run."""

    parameters: int
    tokens: int
    loss: float
    folder: str
    flops: float
    """6 N D; the budget, where the run was made for one."""


def sweep(settings: Sweep, out: str, console: Console | None = None, crew: Crew | None = None) -> dict[str, Any]:
    """Run, fit, predict, measure. Writes OUT/runs.jsonl (a table for `scale fit`) and OUT/sweep.json.

    Resumable: finished runs are read back. Returns {"fit", "points"}, with `budgets` also {"isoflop"} (what
    `scale isoflop` gives, or why there is nothing), and with `predict` {"predicted", "measured", "error"} (relative).
    """
    settings.check()
    os.makedirs(out, exist_ok=True)
    with crewed(crew) as own:
        return _sweep(settings, out, Runner(console, own))


@dataclass(frozen=True)
class Runner:
    """What every run of the sweep shares."""

    console: Console | None
    crew: Crew


def _sweep(settings: Sweep, out: str, runner: Runner) -> dict[str, Any]:
    from trainers.scaling import command

    if settings.fitted:
        before = json.loads(Path(settings.fitted).read_text())  # it is there: check() looked
        fitted = before["fit"]
        points = [Point(**{"flops": 6.0 * p["parameters"] * p["tokens"], **p}) for p in before["points"]]
    else:
        points = []
        affordable = _affordable(settings) if settings.budgets else []
        for number, shape in enumerate(settings.models):
            rate = settings.rates[number] if settings.rates else None
            folder = os.path.join(out, f"size-{number}")
            if settings.steps:
                points += _size(settings, shape, rate, sorted(settings.steps), folder, runner)
            else:
                points += _budgets(settings, shape, rate, affordable[number], folder, runner)
        table = os.path.join(out, "runs.jsonl")
        Path(table).write_text("".join(json.dumps(asdict(point)) + "\n" for point in points))
        fitted = command.fit_law(table, samples=settings.samples)
    result: dict[str, Any] = {"fit": fitted, "points": [asdict(point) for point in points]}
    if settings.budgets and not settings.fitted:
        try:
            result["isoflop"] = command.fit_isoflop(os.path.join(out, "runs.jsonl"), "parabola")
        except DataError as error:  # the law through all runs stands
            result["isoflop"] = str(error)
    if settings.predict:
        point = _larger(settings, settings.predict, os.path.join(out, "predicted"), runner)
        plan = command.plan(fitted, parameters=point.parameters, tokens=point.tokens)
        result |= {
            "predicted": plan["loss"],
            "interval": plan["intervals"]["loss"],
            "measured": point.loss,
            "error": plan["loss"] / point.loss - 1,
            "larger": asdict(point),
        }
    Path(out, "sweep.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(out, "report.html").write_text(_page(result), encoding="utf-8")
    return result


def _larger(settings: Sweep, large: Mapping[str, Any], out: str, runner: Runner) -> Point:
    """The predicted run, in one piece: with the same warmup, stable rate and decay it equals trunk and branch."""
    further = dict(large.get("recipe", {}))
    further["objective"] = {**settings.base.get("objective", {}), **further.get("objective", {})}
    base = {**settings.base, **further}
    recipe = whole_run(base, large["model"], int(large["steps"]), settings.decay, large.get("rate"))
    return point_of(finished(recipe, out, runner), out)


def whole_run(
    base: Mapping[str, Any], shape: Mapping[str, Any], steps: int, decay: float, rate: float | None
) -> TrainRecipe:
    """The recipe of one run by warmup, stable rate and decay (a share of it), with the base's settings."""
    schedule = {**base.get("schedule", {}), "shape": "wsd", "decay": max(1, round(steps * decay))}
    if rate is not None:
        schedule["rate"] = rate
    warmup = schedule.get("warmup", 0.02)
    schedule["warmup"] = max(1, round(warmup * steps)) if 0 < warmup < 1 else warmup
    fields = {"export": False, **base, "model": dict(shape), "steps": steps, "schedule": schedule}
    return from_mapping(fields, "sweep")


def point_of(report: TrainReport, folder: str, flops: float | None = None) -> Point:
    """What was measured: the held-out loss at the end, or the training loss where nothing is held out."""
    loss = report.validation[max(report.validation)] if report.validation else report.last_loss
    n, d = report.parameters, report.tokens
    return Point(n, d, loss, folder, flops or 6.0 * n * d)


def _affordable(settings: Sweep) -> list[list[int]]:
    """Per size, the steps that each budget, by rising compute, lasts for: C = 6 N D. Raises RecipeError below 10."""
    from trainers.model import ModelSettings

    recipe = from_mapping({**settings.base, "steps": 1}, "sweep.base")
    targets, vocabulary = _targets_per_row(recipe)
    found = []
    for shape in settings.models:
        parameters = make(ModelSettings, shape, "sweep.models").parameters(vocabulary)
        steps: list[int] = []
        for budget in sorted(settings.budgets or []):
            steps.append(round(budget / (6 * parameters * recipe.batch_rows * targets)))
            if steps[-1] < 10:
                raise RecipeError(
                    f"sweep: {budget:.3g} FLOP are {steps[-1]} steps of {recipe.batch_rows} rows for {parameters:,} "
                    "parameters; 10 or more make a curve: raise the budget, or lower batch_rows or the size"
                )
        found.append(steps)
    return found


def _budgets(
    settings: Sweep, shape: Mapping[str, Any], rate: float | None, steps: list[int], out: str, runner: Runner
) -> list[Point]:
    """One run per budget, of as many steps as it lasts for."""
    points = []
    for budget, length in zip(sorted(settings.budgets or []), steps, strict=True):
        folder = os.path.join(out, f"budget-{budget:.4g}")
        report = finished(whole_run(settings.base, shape, length, settings.decay, rate), folder, runner)
        points.append(point_of(report, folder, budget))
    return points


def _targets_per_row(recipe: TrainRecipe) -> tuple[float, int]:
    """(trained tokens per row on average, vocabulary). The first token of a document is no target."""
    shares, targets, vocabulary = recipe.folders(), 0.0, 0
    for path, share in shares.items():
        try:
            about = json.loads(storage.read_bytes(storage.join(path, DATASET_FILE)))
        except FileNotFoundError:
            raise RecipeError(f"data: no {DATASET_FILE} in {path}; expected the packed/ folder of a run") from None
        targets += share * (about["tokens"] - about["documents"]) / about["rows"]
        vocabulary = about["vocab_size"]
    return targets / sum(shares.values()), vocabulary


def _short(number: float) -> str:
    """1,234,567 as 1.23M.

    >>> _short(1_234_567), _short(68_000)
    ('1.23M', '68k')
    """
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k"


def _page(result: Mapping[str, Any]) -> str:
    """The sweep's runs and its law, and the larger run's predicted and measured loss, as one static page."""
    law = Law(**result["fit"]["law"])
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    larger = [result["larger"]] if "larger" in result else []
    for point in [*result["points"], *larger]:
        n, d, loss = point["parameters"], point["tokens"], point["loss"]
        curves.setdefault(f"{_short(n)} parameters", []).append((d, loss))
        said = float(law.loss(n, d))
        rows.append(
            f"<tr><td class=n>{n:,}<td class=n>{d:,}<td class=n>{loss:.4f}<td class=n>{said:.4f}"
            f"<td class=n>{said / loss - 1:+.2%}"
        )
    coefficients = [
        f"<tr><td>{name}<td class=n>{value:.5g}<td class=n>{spread}" for name, value, spread in _coefficients(result)
    ]
    told = "".join(f"<p>{line}.</p>" for line in open_ones(result["fit"].get("undetermined", ())))
    if larger:
        low, high = result["interval"]
        told += (
            f"<p>Predicted {result['predicted']:.4f} ({low:.4f} to {high:.4f}), measured {result['measured']:.4f}: "
            f"off by {result['error']:+.2%}.</p>"
        )
    right = "<th class=n>"
    runs = table(right + right.join(("parameters", "tokens", "held-out loss", "law", "law is off by")), rows)
    fitted = table(f"<th>coefficient{right}value{right}95 % interval", coefficients)
    shown = plot("held-out loss (nats per token)", curves, across="tokens", logarithmic=True) + _valleys(result)
    form = "L = E + A/N<sup>α</sup> + B/D<sup>β</sup>"
    body = f"<h1>Scaling sweep</h1>{told}{shown}<h2>Runs</h2>{runs}<h2>{form}</h2>{fitted}"
    return document("scaling sweep · corpusmill", body)


def _coefficients(result: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Name, value and interval of each coefficient, or that the runs leave it open."""
    fitted = result["fit"]
    spreads = {name: f"{low:.5g} to {high:.5g}" for name, (low, high) in fitted["intervals"].items()}
    spreads |= dict.fromkeys(fitted.get("undetermined", ()), "not determined")
    return [(name, value, spreads[name]) for name, value in fitted["law"].items()]


def _valleys(result: Mapping[str, Any]) -> str:
    """The IsoFLOP curves of a sweep over budgets, and the best size that they give."""
    if "isoflop" not in result:
        return ""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(result["points"], key=lambda one: (one["flops"], one["parameters"])):
        curves.setdefault(f"{point['flops']:.3g} FLOP", []).append((point["parameters"], point["loss"]))
    drawn = plot("held-out loss (nats per token)", curves, across="parameters", logarithmic=True)
    return f"{drawn}<p>{html.escape(_best(result))}</p>"


def _best(result: Mapping[str, Any]) -> str:
    """What the IsoFLOP curves say, or why they say nothing."""
    found = result["isoflop"]
    if isinstance(found, str):
        return found
    return f"best N = {found['sizes']['coefficient']:.4g} · C^{found['sizes']['exponent']:.4f}"


def summary(result: Mapping[str, Any]) -> list[str]:
    """The result for a terminal."""
    law = Law(**result["fit"]["law"])
    lines = [f"{'parameters':>12} {'tokens':>14} {'loss':>8} {'law':>8} {'off':>7}"]
    for point in result["points"]:
        said = float(law.loss(point["parameters"], point["tokens"]))
        lines.append(
            f"{point['parameters']:>12,} {point['tokens']:>14,} {point['loss']:>8.4f} {said:>8.4f} "
            f"{said / point['loss'] - 1:>+7.2%}"
        )
    lines.append("L(N, D) = E + A/N^alpha + B/D^beta, with 95 % intervals")
    lines += [f"  {name:<9} {value:>10.5g}   {spread}" for name, value, spread in _coefficients(result)]
    lines += open_ones(result["fit"].get("undetermined", ()))
    if "isoflop" in result:
        lines.append(_best(result))
    if "larger" in result:
        low, high = result["interval"]
        lines.append(
            f"larger run of {result['larger']['parameters']:,} parameters: predicted {result['predicted']:.4f} "
            f"({low:.4f} to {high:.4f}), measured {result['measured']:.4f}, off by {result['error']:+.2%}"
        )
    return lines


def _size(
    settings: Sweep, shape: Mapping[str, Any], rate: float | None, steps: list[int], out: str, runner: Runner
) -> list[Point]:
    """All lengths of one size: the trunk up to the last corner, then a decay from every corner."""
    corners = [length - max(1, round(length * settings.decay)) for length in steps]
    schedule = {**settings.base.get("schedule", {})}
    if rate is not None:
        schedule["rate"] = rate

    def recipe(**changes: Any) -> TrainRecipe:
        return from_mapping({**settings.base, "export": False, **changes}, "sweep.base")

    trunk = recipe(
        model=dict(shape), steps=corners[-1], save_at=corners, schedule={**schedule, "shape": "constant"}, keep=1
    )
    if schedule.get("warmup", 0.02) < 1:
        # a share would mean other steps for the trunk than for a run of the whole length
        trunk = trunk.model_copy(
            update={"schedule": {**trunk.schedule, "warmup": max(1, round(schedule.get("warmup", 0.02) * steps[0]))}}
        )
    folder = os.path.join(out, "trunk")
    finished(trunk, folder, runner)
    points = []
    for length, corner in zip(steps, corners, strict=True):
        left = length - corner
        decay = recipe(
            steps=left,
            schedule={**schedule, "shape": "wsd", "warmup": 0, "decay": left},
            **{"continue": {"run": folder, "at": corner, "rows": "next"}},
        )
        branch = os.path.join(out, f"decay-{length:08d}")
        report = finished(decay, branch, runner)
        points.append(point_of(report, branch))
    return points


def finished(recipe: TrainRecipe, folder: str, runner: Runner) -> TrainReport:
    """The report of a run, read back if it was finished before."""
    path = Path(folder, "report.json")
    if path.is_file():
        raw = json.loads(path.read_text())
        for name in ("validation", "losses"):
            raw[name] = {int(step): value for step, value in raw[name].items()}
        return TrainReport(**raw)
    report = train(recipe, folder, runner.console, runner.crew)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(report)) + "\n")
    os.replace(aside, path)
    return report
