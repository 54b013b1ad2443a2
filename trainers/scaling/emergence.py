"""Sudden rises of a task along a scale axis, beside the smooth metric that may show no rise at all.

Breakthroughness and linearity as in Srivastava et al. 2022 (BIG-bench, appendix B); that harsh metrics can make a
smooth improvement look sudden: Schaeffer et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest
from trainers.log import read_metrics
from trainers.scaling.table import NAMES, read_rows


@dataclass(frozen=True)
class Rise:
    """How one metric moves along the scale axis."""

    improvement: float
    """I = sign(argmax y − argmin y) · (max y − min y): positive when larger models are better."""
    linearity: float
    """I / √mean(Δy²): √steps for even progress over n steps, less for noise and for jumps."""
    breakthroughness: float
    """I / √median(Δy²): large when most steps bring nothing and few bring all."""
    at: float
    """The scale behind the largest step of the rising curve."""
    width: float
    """The part of the scale axis (in logarithms) over which the rising curve goes from 10 % to 90 % of its rise."""
    gain: float
    """The rise of that curve."""

    @property
    def sudden(self) -> bool:
        """A rise of at least .1, most of which comes within three tenths of the axis; even progress takes eight."""
        return self.gain >= 0.1 and self.width <= 0.3


def rise(scale: Sequence[float], metric: Sequence[float]) -> Rise:
    """Measure a metric (higher is better) over models of different scale, ordered here; equal scales are averaged.

    Where and how suddenly it rises is read from the best rising curve through the values (isotonic regression): models
    of several families scatter, and each step between two of them is no rise. Raises DataError for fewer than 4
    different scales, or scales that are not positive.
    """
    x, y = np.asarray(scale, float), np.asarray(metric, float)
    known = np.isfinite(x) & np.isfinite(y)
    scales, place = np.unique(x[known], return_inverse=True)
    if len(scales) < 4:
        raise DataError(f"a rise needs 4 or more scales, found {len(scales)}")
    if scales[0] <= 0:
        raise DataError(f"a scale axis has positive values, found {scales[0]:g}")
    counts = np.bincount(place)
    means = np.bincount(place, weights=y[known]) / counts
    steps = np.diff(means)
    improvement = float(np.sign(np.argmax(means) - np.argmin(means)) * (means.max() - means.min()))
    floor = 1e-4  # one item in ten thousand: a step of exactly 0 would make any rise infinite
    curve = rising(means, counts)
    gain = float(curve[-1] - curve[0])
    axis = np.log(scales)
    edges = [_crossing(axis, curve, curve[0] + part * gain) for part in (0.1, 0.9)] if gain > 0 else [axis[0], axis[-1]]
    return Rise(
        improvement,
        improvement / max(floor, float(np.sqrt((steps**2).mean()))),
        improvement / max(floor, float(np.sqrt(np.median(steps**2)))),
        float(scales[int(np.argmax(np.diff(curve))) + 1]),
        float((edges[1] - edges[0]) / (axis[-1] - axis[0])),
        gain,
    )


def rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing values nearest to the given ones in weighted squares: neighbours that fall are pooled."""
    pools: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, more, length = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * more) / (last[1] + more)
            last[1], last[2] = last[1] + more, last[2] + length
    return np.concatenate([np.full(int(length), mean) for mean, _, length in pools])


def _crossing(axis: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Where a rising curve first reaches a level, between two points in proportion."""
    after = int(np.argmax(curve >= level))
    before = max(0, after - 1)
    step = curve[after] - curve[before]
    return float(axis[before] + (axis[after] - axis[before]) * ((level - curve[before]) / step if step else 0.0))


def side_by_side(
    scale: Sequence[float], harsh: Mapping[str, Sequence[float]], smooth: Mapping[str, Sequence[float]]
) -> list[dict[str, object]]:
    """Per task, whether its accuracy rises suddenly and whether its smooth metric (log-likelihood, −Brier) does.

    `apparent` marks tasks whose accuracy jumps while the smooth metric moves evenly: emergence by the choice of metric.
    """
    rows: list[dict[str, object]] = []
    for task, values in harsh.items():
        hard = rise(scale, values)
        soft = rise(scale, smooth[task]) if task in smooth else None
        rows.append(
            {
                "task": task,
                "sudden": hard.sudden,
                "at": hard.at,
                "breakthroughness": hard.breakthroughness,
                "width": hard.width,
                "smooth_width": soft.width if soft else None,
                "apparent": bool(hard.sudden and soft is not None and not soft.sudden),
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

    `scale` names the axis (flops, else parameters, else tokens). The smooth metric of X_accuracy, or of X, is the
    column X_log_likelihood, X_probability, X_brier or X_bits_per_byte. Raises RecipeError for a column that is absent.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row if name))
    axes = [name for key in ("flops", "parameters", "tokens") for name in NAMES[key]]
    scale = scale or next((name for name in axes if name in columns), None)
    if scale is None:
        raise RecipeError(f"--scale: which column is the scale axis? The table has {', '.join(columns)}")
    for name in (scale, *tasks):
        if name not in columns:
            raise RecipeError(f"no column '{name}'{nearest(name, columns)}")

    def numbers(name: str) -> np.ndarray:
        return np.array([_number(row.get(name)) for row in rows])

    axis = numbers(scale)

    def enough(name: str) -> bool:
        return len(np.unique(axis[np.isfinite(axis) & np.isfinite(numbers(name))])) >= 4

    plain = {name: name.removesuffix("_accuracy") for name in columns}
    smooth = {
        name: f"{stem}_{ending}"
        for name, stem in plain.items()
        for ending in reversed(SMOOTH)
        if f"{stem}_{ending}" in columns and enough(f"{stem}_{ending}")
    }
    left_out = {scale, *axes, *NAMES["loss"], *smooth.values()}
    left_out |= {name for name in columns if name.startswith("validation") or name.endswith(tuple(SMOOTH))}
    chosen = list(tasks) or [name for name in among or columns if name not in left_out and enough(name)]
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
