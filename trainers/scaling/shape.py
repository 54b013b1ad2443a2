"""Does shape matter? One number of weights at several depths, head sizes and FFN widths, all trained alike.

Kaplan et al. 2020, section 3.1: over a wide range, the loss moves by a few percent only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import RecipeError
from cluster.page import document, table
from cluster.settings import Settings, assign, make, read_yaml, refuse_other
from trainers.page import plot
from trainers.scaling.sweep import Runner, check_base, finished, whole_run
from trainers.train import TrainReport
from trainers.workers import Crew, crewed

if TYPE_CHECKING:
    from rich.console import Console


class Shapes(Settings):
    """A `scale shape` recipe: one training recipe, and the shapes of models with equally many weights."""

    base: dict[str, Any] = Field(description="training recipe without model, steps, tokens, epochs")
    steps: int = Field(gt=1, description="optimiser steps of every run")
    parameters: int = Field(gt=0, description="weights of the blocks (embeddings not counted), the same for all")
    layers: list[int] = Field(min_length=1, description="depths")
    head_size: list[int] = Field([64], min_length=1, description="dimensions per head")
    ffn_ratio: list[float] = Field([8 / 3], min_length=1, description="width of the FFN in widths of the model, about")
    decay: float = Field(0.2, gt=0, lt=1, description="share of each run that is decay")
    rate: float | None = Field(None, gt=0, description="peak rate of all; None: the base recipe's")
    tolerance: float = Field(0.02, gt=0, lt=1, description="by how much the number of weights may differ")

    def check(self) -> list[Shape]:
        """All shapes, every combination once. Raises RecipeError where one misses the number of weights."""
        check_base(self.base, "shape")
        odd = [size for size in self.head_size if size < 2 or size % 2]
        if odd or min(self.layers) < 1 or min(self.ffn_ratio) <= 0:
            raise RecipeError(
                f"shape: head_size {self.head_size} must be even, layers {self.layers} and ffn_ratio {self.ffn_ratio} "
                "positive"
            )
        shapes = [
            shape_of(self.parameters, *one, self.tolerance)
            for one in product(self.layers, self.head_size, self.ffn_ratio)
        ]
        shapes = list(dict.fromkeys(shapes))
        if len(shapes) < 2:
            raise RecipeError(
                "shape: one shape has nothing to be compared with; give several layers, head_size, ffn_ratio"
            )
        return shapes


@dataclass(frozen=True)
class Shape:
    """A Llama's ratios."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int

    @property
    def weights(self) -> int:
        """Of the blocks: 4 h² for attention, 3 h f for SwiGLU, 2 h for the norms."""
        h = self.hidden_size
        return self.layers * (4 * h * h + 3 * h * self.intermediate_size + 2 * h)


def shape_of(parameters: int, layers: int, head_size: int, ffn_ratio: float, tolerance: float) -> Shape:
    """The shape with the number of weights nearest to `parameters`: h is a multiple of the head size by
    layers · h² · (4 + 3 · ratio) = parameters, and the FFN's width, in steps of 8, takes up the rest.

    Raises RecipeError, with what is possible, when that misses by more than `tolerance`, or the FFN must be over twice
    or under half as wide as asked for: then it, not depth or heads, would be what is compared.
    """
    ideal = (parameters / layers / (4 + 3 * ffn_ratio)) ** 0.5
    tried = []
    for hidden in {max(1, int(ideal // head_size)) * head_size, (int(ideal // head_size) + 1) * head_size}:
        ffn = max(8, round((parameters / layers - 4 * hidden * hidden - 2 * hidden) / (3 * hidden) / 8) * 8)
        tried.append(Shape(layers, hidden, hidden // head_size, ffn))
    fitting = [shape for shape in tried if abs(shape.weights / parameters - 1) <= tolerance]
    if not fitting:
        near = min(tried, key=lambda shape: abs(shape.weights - parameters))
        raise RecipeError(
            f"shape: {layers} layers with heads of {head_size} cannot have {parameters:,} weights within "
            f"{tolerance:.0%}; the nearest has {near.weights:,} (width {near.hidden_size}): change parameters, or use "
            "smaller heads"
        )
    best = min(fitting, key=lambda shape: abs(shape.intermediate_size / shape.hidden_size / ffn_ratio - 1))
    ratio = best.intermediate_size / best.hidden_size
    if not 0.5 <= ratio / ffn_ratio <= 2:
        raise RecipeError(
            f"shape: {layers} layers with heads of {head_size} have {parameters:,} weights only with an FFN of "
            f"{ratio:.3g} widths, where {ffn_ratio:.3g} were asked for: use smaller heads, or more parameters"
        )
    return best


def load_shapes(path: str, changes: Sequence[str] = ()) -> Shapes:
    """The study in a YAML file with `path.to.field=value` changes applied. Raises RecipeError."""
    raw = read_yaml(path)
    refuse_other(raw, path, "scale shape")
    for change in changes:
        assign(raw, change)
    made = make(Shapes, raw, path)
    made.check()
    return made


def study(settings: Shapes, out: str, console: Console | None = None, crew: Crew | None = None) -> dict[str, Any]:
    """Train every shape, and write OUT/shapes.json and OUT/report.html. Resumable: finished runs are read back.

    Returns {"runs": [{shape, "weights", "train", "test"}], "spread"}: losses in nats at the end, the training loss as
    mean of the last tenth of the steps, and (worst − best) / best of the test loss (of the training loss where nothing
    is held out).
    """
    os.makedirs(out, exist_ok=True)
    runs = []
    with crewed(crew) as own:
        for shape in settings.check():
            name = f"l{shape.layers}-h{shape.hidden_size}-a{shape.heads}-f{shape.intermediate_size}"
            recipe = whole_run(settings.base, asdict(shape), settings.steps, settings.decay, settings.rate)
            report = finished(recipe, os.path.join(out, name), Runner(console, own))
            runs.append({**asdict(shape), "weights": shape.weights, "run": name, **losses(report)})
    ends = [run["train"] if run["test"] is None else run["test"] for run in runs]
    result = {"runs": runs, "spread": (max(ends) - min(ends)) / min(ends)}
    Path(out, "shapes.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(out, "report.html").write_text(_page(result), encoding="utf-8")
    return result


def losses(report: TrainReport) -> dict[str, float | None]:
    """{"train", "test"} of a finished run, in nats per token; no test where nothing is held out."""
    last = [loss for step, loss in report.losses.items() if step > report.steps - max(1, report.steps // 10)]
    test = report.validation[max(report.validation)] if report.validation else None
    return {"train": sum(last) / len(last), "test": test}


def summary(result: Mapping[str, Any]) -> list[str]:
    """The result for a terminal."""
    head = f"{'layers':>6} {'width':>6} {'heads':>6} {'FFN':>6} {'width/depth':>12} {'weights':>12}"
    lines = [f"{head} {'train':>8} {'test':>8} {'gap':>8}"]
    for run in result["runs"]:
        test = "" if run["test"] is None else f"{run['test']:>8.4f} {run['test'] - run['train']:>+8.4f}"
        lines.append(
            f"{run['layers']:>6} {run['hidden_size']:>6} {run['heads']:>6} {run['intermediate_size']:>6} "
            f"{run['hidden_size'] / run['layers']:>12.1f} {run['weights']:>12,} {run['train']:>8.4f} {test}"
        )
    lines.append(f"worst against best: {result['spread']:+.2%} of loss")
    return lines


def _page(result: Mapping[str, Any]) -> str:
    names = ("layers", "width", "heads", "FFN", "width / depth", "weights", "training loss", "held-out loss")
    rows = []
    for run in result["runs"]:
        test = "" if run["test"] is None else f"{run['test']:.4f}"
        cells = (run["layers"], run["hidden_size"], run["heads"], run["intermediate_size"])
        more = (f"{run['hidden_size'] / run['layers']:.1f}", f"{run['weights']:,}", f"{run['train']:.4f}", test)
        rows.append("<tr>" + "".join(f"<td class=n>{cell}" for cell in (*cells, *more)))
    ratios = {
        "width / depth": lambda run: run["hidden_size"] / run["layers"],
        "dimensions per head": lambda run: run["hidden_size"] / run["heads"],
        "FFN / width": lambda run: run["intermediate_size"] / run["hidden_size"],
    }
    plots = ""
    for title, ratio in ratios.items():
        curves: dict[str, list[tuple[float, float]]] = {
            name: sorted((ratio(run), run[key]) for run in result["runs"] if run[key] is not None)
            for name, key in (("training", "train"), ("held-out", "test"))
        }
        if len({round(x, 2) for x, _ in curves["training"]}) > 1:
            plots += plot("loss (nats per token)", curves, across=title, logarithmic=True, points=True)
    runs = table("".join(f"<th class=n>{name}" for name in names), rows)
    spread = f"<p>The worst shape's loss is {result['spread']:.2%} above the best one's.</p>"
    title = "The same number of weights in several shapes"
    return document(f"{title} · corpusmill", f"<h1>{title}</h1>{spread}{plots}<h2>Runs</h2>{runs}")
