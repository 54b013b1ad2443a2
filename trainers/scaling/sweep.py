"""Measure a scaling law on one's own data: small runs, a fit, a prediction, the larger run, and how far off it was.

Per model size one trunk runs at the stable rate over the longest token count; every shorter count branches off its
trunk and decays. So k token counts cost one trunk and k decays instead of k runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import RecipeError
from cluster.page import document, table
from cluster.settings import Settings, assign, make, read_yaml, refuse_other
from trainers.page import plot
from trainers.recipe import TrainRecipe, from_mapping
from trainers.scaling.law import Law
from trainers.train import TrainReport, train
from trainers.workers import Crew

if TYPE_CHECKING:
    from rich.console import Console


class Sweep(Settings):
    """A `scale sweep` recipe: a training recipe whose model and length vary."""

    base: dict[str, Any] = Field(description="training recipe without model, steps, tokens, epochs")
    models: list[dict[str, Any]] = Field(min_length=2, description="model settings, one per size")
    steps: list[int] = Field(min_length=2, description="lengths in optimiser steps, the same for every size")
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
        if len(self.models) * len(self.steps) < 6:
            raise RecipeError(
                f"sweep: {len(self.models)} sizes x {len(self.steps)} lengths are {len(self.models) * len(self.steps)} "
                "runs; the law has 5 coefficients and needs 6 or more"
            )
        if self.rates is not None and len(self.rates) != len(self.models):
            raise RecipeError(f"sweep: {len(self.rates)} rates for {len(self.models)} models")
        if self.fitted and not Path(self.fitted).is_file():
            raise RecipeError(f"sweep: fitted: no file {self.fitted}; expected the sweep.json of a finished sweep")
        if self.fitted and self.predict is None:
            raise RecipeError("sweep: fitted takes a law from before, and predict: null leaves nothing to train")
        wrong = [name for name in ("model", "steps", "tokens", "epochs", "continue") if name in self.base]
        if wrong:
            raise RecipeError(f"sweep: base sets {', '.join(wrong)}, which the sweep itself sets")


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


def sweep(settings: Sweep, out: str, console: Console | None = None) -> dict[str, Any]:
    """Run, fit, predict, measure. Writes OUT/runs.jsonl (a table for `scale fit`) and OUT/sweep.json.

    Resumable: finished runs are read back. Returns {"fit", "points"} and, with `predict`, {"predicted", "measured",
    "error"} (relative).
    """
    settings.check()
    os.makedirs(out, exist_ok=True)
    with Crew() as crew:
        return _sweep(settings, out, Runner(console, crew))


@dataclass(frozen=True)
class Runner:
    """What every run of the sweep shares."""

    console: Console | None
    crew: Crew


def _sweep(settings: Sweep, out: str, runner: Runner) -> dict[str, Any]:
    from trainers.scaling import command

    if settings.fitted:
        before = json.loads(Path(settings.fitted).read_text())  # it is there: check() looked
        fitted, points = before["fit"], [Point(**point) for point in before["points"]]
    else:
        points = []
        for number, shape in enumerate(settings.models):
            rate = settings.rates[number] if settings.rates else None
            points += _size(settings, shape, rate, sorted(settings.steps), os.path.join(out, f"size-{number}"), runner)
        table = os.path.join(out, "runs.jsonl")
        Path(table).write_text("".join(json.dumps(asdict(point)) + "\n" for point in points))
        fitted = command.fit_law(table, samples=settings.samples)
    result: dict[str, Any] = {"fit": fitted, "points": [asdict(point) for point in points]}
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
    length = int(large["steps"])
    schedule = {**settings.base.get("schedule", {}), "shape": "wsd", "decay": max(1, round(length * settings.decay))}
    if large.get("rate") is not None:
        schedule["rate"] = large["rate"]
    warmup = schedule.get("warmup", 0.02)
    schedule["warmup"] = max(1, round(warmup * length)) if 0 < warmup < 1 else warmup
    further = dict(large.get("recipe", {}))
    further["objective"] = {**settings.base.get("objective", {}), **further.get("objective", {})}
    fields = {**settings.base, "export": False, **further, "model": large["model"], "steps": length}
    report = _finished(from_mapping({**fields, "schedule": schedule}, "sweep.predict"), out, runner)
    return Point(report.parameters, report.tokens, _last(report), out)


def _last(report: TrainReport) -> float:
    """Held-out loss at the end; the training loss where nothing is held out."""
    return report.validation[max(report.validation)] if report.validation else report.last_loss


def _page(result: Mapping[str, Any]) -> str:
    """The sweep's runs and its law, and the larger run's predicted and measured loss, as one static page."""
    law = Law(**result["fit"]["law"])
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    larger = [result["larger"]] if "larger" in result else []
    for point in [*result["points"], *larger]:
        n, d, loss = point["parameters"], point["tokens"], point["loss"]
        curves.setdefault(f"{n / 1e6:.3g}M parameters", []).append((d, loss))
        said = float(law.loss(n, d))
        rows.append(
            f"<tr><td class=n>{n:,}<td class=n>{d:,}<td class=n>{loss:.4f}<td class=n>{said:.4f}"
            f"<td class=n>{said / loss - 1:+.2%}"
        )
    spread = result["fit"]["intervals"]
    coefficients = [
        f"<tr><td>{name}<td class=n>{value:.5g}<td class=n>{spread[name][0]:.5g} to {spread[name][1]:.5g}"
        for name, value in result["fit"]["law"].items()
    ]
    told = ""
    if larger:
        low, high = result["interval"]
        told = (
            f"<p>Predicted {result['predicted']:.4f} ({low:.4f} to {high:.4f}), measured {result['measured']:.4f}: "
            f"off by {result['error']:+.2%}.</p>"
        )
    right = "<th class=n>"
    runs = table(right + right.join(("parameters", "tokens", "held-out loss", "law", "law is off by")), rows)
    fitted = table(f"<th>coefficient{right}value{right}95 % interval", coefficients)
    shown = plot("held-out loss (nats per token)", curves, across="tokens", logarithmic=True)
    form = "L = E + A/N<sup>α</sup> + B/D<sup>β</sup>"
    body = f"<h1>Scaling sweep</h1>{told}{shown}<h2>Runs</h2>{runs}<h2>{form}</h2>{fitted}"
    return document("scaling sweep · corpusmill", body)


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
    _finished(trunk, folder, runner)
    points = []
    for length, corner in zip(steps, corners, strict=True):
        left = length - corner
        decay = recipe(
            steps=left,
            schedule={**schedule, "shape": "wsd", "warmup": 0, "decay": left},
            **{"continue": {"run": folder, "at": corner, "rows": "next"}},
        )
        branch = os.path.join(out, f"decay-{length:08d}")
        report = _finished(decay, branch, runner)
        points.append(Point(report.parameters, report.tokens, _last(report), branch))
    return points


def _finished(recipe: TrainRecipe, folder: str, runner: Runner) -> TrainReport:
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
