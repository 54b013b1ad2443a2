"""Sudden rises of a task along a scale axis, beside the smooth metric that may show no rise at all.

Breakthroughness and linearity as in Srivastava et al. 2022 (BIG-bench, appendix B); that harsh metrics can make a
smooth improvement look sudden: Schaeffer et al. 2023.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest
from trainers.log import read_metrics
from trainers.scaling.table import NAMES, columns_of, find, read_rows

CENTRES = np.linspace(-0.25, 1.25, 61)
WIDTHS = np.geomspace(0.02, 4, 16)
"""Logistic curves that are tried, in parts of the axis: where they rise, and over how much they go from 10 to 90 %."""


@dataclass(frozen=True)
class Rise:
    """How one metric moves along the scale axis: the logistic curve nearest to it, and BIG-bench's two measures."""

    improvement: float
    """I = sign(argmax y − argmin y) · (max y − min y): positive when larger models are better."""
    linearity: float
    """I / √mean(Δy²): √steps for even progress over n steps, less for noise and for jumps."""
    breakthroughness: float
    """I / √median(Δy²): large when most steps bring nothing and few bring all."""
    at: float
    """The scale at which the curve has half of its rise."""
    width: float
    """The part of the scale axis (in logarithms) over which the curve goes from 10 % to 90 % of its rise."""
    gain: float
    """The rise of the curve over the axis."""
    scatter: float
    """Standard deviation of the models around the curve."""
    against_even: float
    """By how much an even curve (half of the axis or more) fits worse: Σ of squares, in squares of the scatter."""
    clean: bool
    """Whether the rise stands out: 4 times the scatter, or from 20 models on, 70 % of all variance."""

    def verdict(self, whole: float = 1.0) -> str:
        """How the metric rises.

        none: by less than a tenth of its range `whole`, or by no more than twice the scatter; sudden: most of it within
        three tenths of the axis (even progress takes eight), which no even curve fits; unclear: so, but not `clean`;
        else even.
        """
        if self.gain < 0.1 * whole or self.gain <= 2 * self.scatter:
            return "none"
        if self.width > 0.3 or self.against_even < 4:
            return "even"
        return "sudden" if self.clean else "unclear"


def rise(scale: Sequence[float], metric: Sequence[float], floor: float = 0.02) -> Rise:
    """Measure a metric (higher is better) over models of different scale, ordered here; equal scales are averaged.

    Where and how suddenly it rises is read from the logistic curve over log scale that is nearest in squares: models of
    several families scatter, and each step between two of them is no rise. `floor` is the least scatter that is
    assumed: that of accuracies on some hundred questions. Raises DataError for fewer than 4 different scales, or scales
    that are not positive.
    """
    x, y = np.asarray(scale, float), np.asarray(metric, float)
    known = np.isfinite(x) & np.isfinite(y)
    order = np.lexsort((y[known], x[known]))
    x, y = x[known][order], y[known][order]
    scales, place = np.unique(x, return_inverse=True)
    if len(scales) < 4:
        raise DataError(f"a rise needs 4 or more scales, found {len(scales)}")
    if scales[0] <= 0:
        raise DataError(f"a scale axis has positive values, found {scales[0]:g}")
    means = np.bincount(place, weights=y) / np.bincount(place)
    steps = np.diff(means)
    improvement = float(np.sign(np.argmax(means) - np.argmin(means)) * (means.max() - means.min()))
    least = 1e-4  # one item in ten thousand: a step of exactly 0 would make any rise infinite
    axis = np.log(scales)
    whole = axis[-1] - axis[0]
    part = (axis[place] - axis[0]) / whole  # [models]
    curves, halves, widths = logistic_curves(part)
    centred, values = curves - curves.mean(1, keepdims=True), y - y.mean()
    gains = np.maximum(centred @ values / np.maximum((centred**2).sum(1), 1e-12), 0)  # the curve never falls
    rests = ((values - gains[:, None] * centred) ** 2).sum(1)
    best = int(np.argmin(rests))
    gain, scatter = float(gains[best]), max(floor, float(np.sqrt(rests[best] / max(1, len(values) - 4))))
    return Rise(
        improvement,
        improvement / max(least, float(np.sqrt((steps**2).mean()))),
        improvement / max(least, float(np.sqrt(np.median(steps**2)))),
        float(np.exp(axis[0] + halves[best] * whole)),
        float(widths[best]),
        gain,
        scatter,
        float((rests[widths >= 0.5].min() - rests[best]) / scatter**2),
        gain > 4 * scatter or bool(len(values) >= 20 and rests[best] <= 0.3 * (values**2).sum()),
    )


def logistic_curves(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All CENTRES by WIDTHS, each from 0 at the axis's beginning to 1 at its end.

    Returns the values at `part` [curves, models], the place of half of the rise, and the width from 10 % to 90 % of it.
    """
    centre, width = (values.reshape(-1, 1) for values in np.meshgrid(CENTRES, WIDTHS, indexing="ij"))
    slope = 2 * math.log(9) / width

    def height(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(np.clip(slope * (centre - x), -500, 500))))

    low, high = height(0.0), height(1.0)
    usable = (high - low)[:, 0] > 1e-3  # others lie outside of the axis
    centre, slope, low, high = centre[usable], slope[usable], low[usable], high[usable]
    reached = low + np.array([0.1, 0.5, 0.9]) * (high - low)  # [curves, 3]
    places = centre + np.log(reached / (1 - reached)) / slope
    return (height(part) - low) / (high - low), places[:, 1], places[:, 2] - places[:, 0]


def side_by_side(
    scale: Sequence[float], harsh: Mapping[str, Sequence[float]], smooth: Mapping[str, Sequence[float]]
) -> list[dict[str, object]]:
    """Per task, whether its accuracy rises suddenly and whether its smooth metric (log-likelihood, −Brier) does.

    `verdict` is that of `Rise`, or "apparent": accuracy jumps while the smooth metric rises evenly, which is emergence
    by the choice of metric. Accuracies above 1 are taken for percent.
    """
    rows: list[dict[str, object]] = []
    for task, values in harsh.items():
        whole = 100.0 if np.nanmax(np.abs(np.asarray(values, float))) > 1.5 else 1.0
        hard = rise(scale, values, floor=0.02 * whole)
        soft = rise(scale, smooth[task], floor=1e-3) if task in smooth else None
        verdict = hard.verdict(whole)
        if verdict == "sudden" and soft is not None and soft.verdict(0) == "even":
            verdict = "apparent"
        rows.append(
            {
                "task": task,
                "verdict": verdict,
                "at": hard.at,
                "gain": hard.gain,
                "scatter": hard.scatter,
                "width": hard.width,
                "breakthroughness": hard.breakthroughness,
                "smooth_width": soft.width if soft else None,
            }
        )
    return rows


SMOOTH = {"log_likelihood": 1.0, "probability": 1.0, "brier": -1.0, "bits_per_byte": -1.0}
"""Endings of columns with smooth metrics, and the sign by which higher is better."""


def own_runs(folder: str) -> list[dict[str, Any]]:
    """A table from training runs: every evaluation of one run, or the last one of each run below a folder.

    Columns: the run's folder, parameters, tokens, flops (6 N D), and each figure of the evaluation by its name.
    """
    rows = []
    alone = Path(folder, "metrics.jsonl").is_file()
    for path in [Path(folder)] if alone else sorted(p.parent for p in Path(folder).rglob("metrics.jsonl")):
        lines = read_metrics(str(path))
        size = next((line["parameters"] for line in lines if "parameters" in line), None)
        tokens = {line["step"]: line["tokens"] for line in lines if "tokens" in line}
        measured = [
            line
            for line in lines
            if line["step"] in tokens and not any(n in ("loss", "alarm") or n.startswith("memory_") for n in line)
        ]
        for line in measured if alone else measured[-1:]:
            about: dict[str, Any] = {"run": str(path), "tokens": tokens[line["step"]]}
            if size is not None:
                about |= {"parameters": size, "flops": 6 * size * about["tokens"]}
            rows.append({**about, **{k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}})
    if not rows:
        raise DataError(f"{folder}: no training run with evaluations in it")
    return rows


def joined(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of two tables that agree in the first column that both have. Raises DataError when there is none."""
    key = next((name for name in rows[0] if name in others[0]), None)
    if key is None:
        raise DataError(f"the tables share no column: {sorted(rows[0])} and {sorted(others[0])}")
    by_key = {row[key]: row for row in others}
    found = [{**by_key[row[key]], **row} for row in rows if row[key] in by_key]
    if not found:
        raise DataError(f"no {key} is in both tables: {len(rows)} and {len(others)} rows")
    return found


@dataclass(frozen=True)
class Studied:
    """What `study` found: the axis, every task's values by it, and `side_by_side`'s rows."""

    scale: str
    values: dict[str, list[tuple[float, float]]]
    smooth: dict[str, str]
    rows: list[dict[str, object]]


def study(
    rows: Sequence[Mapping[str, Any]],
    scale: str | None = None,
    tasks: Sequence[str] = (),
    among: Sequence[str] | None = None,
) -> Studied:
    """Judge the tasks of a table: by default all columns (`among` those given) of numbers with 4 or more scales that
    are no smooth metric.

    `scale` names the axis (else compute, or 6 N D; else parameters; else tokens, by their usual names). The smooth
    metric of X_accuracy, X_acc, X_exact_match, or of X, is the column X_log_likelihood, X_probability, X_brier or
    X_bits_per_byte. Raises RecipeError for a column that is absent.
    """
    columns = columns_of(rows)
    axes = {key: one for key in ("parameters", "tokens", "flops") if (one := find(columns, key))}
    for name in ([scale] if scale else []) + list(tasks):
        if name not in columns:
            raise RecipeError(f"no column '{name}'{nearest(name, columns)}")

    def numbers(name: str) -> np.ndarray:
        return np.array([_number(row.get(name)) for row in rows])

    if scale:
        axis = numbers(scale)
    elif "flops" not in axes and {"parameters", "tokens"} <= set(axes):
        scale, sizes = "6 N D", [unit * numbers(name) for name, unit in (axes["parameters"], axes["tokens"])]
        axis = 6 * sizes[0] * sizes[1]
    elif axes:
        scale, unit = axes.get("flops") or axes.get("parameters") or axes["tokens"]
        axis = unit * numbers(scale)
        scale = scale if unit == 1 else scale.partition("(")[0].strip()
    else:
        raise RecipeError(f"--scale: which column is the scale axis? The table has {', '.join(columns)}")

    def enough(name: str) -> bool:
        return len(np.unique(axis[np.isfinite(axis) & np.isfinite(numbers(name))])) >= 4

    plain = {name: re.sub("_(accuracy|acc|exact_match)$", "", name) for name in columns}
    smooth = {
        name: f"{stem}_{ending}"
        for name, stem in plain.items()
        for ending in reversed(SMOOTH)
        if f"{stem}_{ending}" in columns and enough(f"{stem}_{ending}")
    }
    left_out = {scale, *(name for name, _ in axes.values()), *NAMES["loss"], *smooth.values()}
    left_out |= {name for name in columns if name.startswith("validation") or name.endswith(tuple(SMOOTH))}
    chosen = list(tasks) or [name for name in among or columns if name not in left_out and enough(name)]
    few = [name for name in chosen if not enough(name)]
    if few:
        raise DataError(f"{few[0]}: numbers at fewer than 4 different values of {scale}, too few for a rise")
    if not chosen:
        raise DataError(f"no task with 4 or more different values of {scale} among {', '.join(columns)}")
    signed = {
        name: numbers(column) * next(sign for end, sign in SMOOTH.items() if column.endswith(end))
        for name, column in smooth.items()
        if name in chosen
    }
    found = side_by_side(axis.tolist(), {name: numbers(name).tolist() for name in chosen}, signed)  # type: ignore[arg-type]
    shown = [*chosen, *(smooth[name] for name in chosen if name in smooth)]
    values = {name: sorted(zip(axis.tolist(), numbers(name).tolist(), strict=True)) for name in shown}
    return Studied(scale, values, {name: smooth[name] for name in chosen if name in smooth}, found)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def study_files(
    path: str, others: str | None, scale: str | None, tasks: Sequence[str], where: Sequence[str]
) -> Studied:
    """`study` over a table (joined with another one), or over a folder of training runs."""
    rows = own_runs(path) if Path(path).is_dir() else read_rows(path, where)
    if others is None:
        return study(rows, scale, tasks)
    return study(joined(rows, read_rows(others)), scale, tasks, among=list(rows[0]))
