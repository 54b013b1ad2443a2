"""`corpusmill scale`: fit a law to runs, plan from a law, predict. Tables in, tables out; nothing is trained here."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest
from trainers.scaling import isoflop
from trainers.scaling.law import Law, bootstrap, fit, without_worst
from trainers.scaling.repeated import RepeatedLaw

NAMES = {
    "parameters": ("parameters", "params", "params_N", "Model Size", "N", "n"),
    "tokens": ("tokens", "tokens_D", "D", "d"),
    "flops": ("flops", "Training FLOP", "C", "compute"),
    "loss": ("loss", "val_loss", "validation"),
}
"""Column names that are understood, besides those given."""

COEFFICIENTS = ("E", "A", "B", "alpha", "beta", "exponent")


@dataclass(frozen=True)
class Runs:
    """A table of runs as arrays: parameters, tokens (flops / 6 N where it has no tokens), loss."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray


def read_runs(path: str) -> Runs:
    """Runs from CSV or JSONL with columns for parameters, loss, and tokens or flops. Raises DataError."""
    rows: list[dict[str, Any]]
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith((".jsonl", ".json")):
            rows = [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines(), strict=True))
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: neither CSV with a header nor JSONL (by the ending .jsonl): {error}") from None
    if not rows:
        raise DataError(f"{path}: no runs in it")
    columns = {key: next((name for name in names if name in rows[0]), None) for key, names in NAMES.items()}
    missing = [key for key in ("parameters", "loss") if columns[key] is None]
    if missing or (columns["tokens"] is None and columns["flops"] is None):
        wanted = missing or ["tokens or flops"]
        raise DataError(f"{path}: no column for {', '.join(wanted)}{nearest(wanted[0], filter(None, rows[0]))}")

    def column(key: str) -> np.ndarray:
        values = []
        for number, row in enumerate(rows, 1):
            try:
                values.append(float(row[columns[key]]))  # type: ignore[index]
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{path}, run {number}: no number as {columns[key]}: {row}") from None
        return np.array(values)

    parameters, loss = column("parameters"), column("loss")
    tokens = column("tokens") if columns["tokens"] else column("flops") / 6 / parameters
    flops = column("flops") if columns["flops"] else 6 * parameters * tokens
    return Runs(parameters, tokens, loss, flops)


def fit_law(path: str, *, drop_worst: int = 0, samples: int = 1000, seed: int = 42) -> dict[str, Any]:
    """L(N, D) fitted to the runs in a table: {"law", "intervals" (95 %), "objective", "runs", "sizes"}.

    `sizes` says over what range of N and D the law was fitted: outside, it is an extrapolation.
    """
    runs = read_runs(path)
    n, d, loss = without_worst(runs.parameters, runs.tokens, runs.loss, drop_worst)
    found = fit(n, d, loss)
    laws = bootstrap(n, d, loss, found, samples=samples, seed=seed)
    return {
        "law": asdict(found.law),
        "exponent": found.law.exponent,
        "intervals": {name: found.interval(laws, name) for name in COEFFICIENTS},
        "objective": found.objective,
        "runs": found.runs,
        "range": {"parameters": [n.min(), n.max()], "tokens": [d.min(), d.max()]},
        "samples": [asdict(law) for law in laws],
    }


def fit_isoflop(path: str, method: str = "akima") -> dict[str, Any]:
    """N*(C) through the minima of the IsoFLOP curves of a table whose runs share budgets."""
    runs = read_runs(path)
    curves: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for flops, parameters, loss in zip(runs.flops, runs.parameters, runs.loss, strict=True):
        curves[float(f"{flops:.4g}")].append((float(parameters), float(loss)))
    if method not in ("akima", "parabola"):
        raise RecipeError(f"isoflop method '{method}'{nearest(method, ['akima', 'parabola'])}")
    sizes, valleys = isoflop.best_sizes({c: points for c, points in curves.items() if len(points) >= 3}, method)  # type: ignore[arg-type]
    losses = isoflop.power_law([v.flops for v in valleys], [v.loss for v in valleys])
    return {"sizes": asdict(sizes), "losses": asdict(losses), "valleys": [asdict(v) for v in valleys]}


def plan(
    fitted: dict[str, Any],
    *,
    flops: float | None = None,
    parameters: float | None = None,
    tokens: float | None = None,
    unique_tokens: float | None = None,
) -> dict[str, Any]:
    """The best N and D for a budget, or the loss for given N and D, each with its 95 % bootstrap interval.

    With `unique_tokens`, repeated passes count as Muennighoff et al. 2023 found. Raises RecipeError unless either
    flops, or parameters and tokens are given.
    """
    law = Law(**fitted["law"])
    laws = [Law(**sample) for sample in fitted.get("samples", [])]

    def answer(one: Law) -> tuple[float, float, float]:
        if flops is not None:
            return RepeatedLaw(one).optimum(flops, unique_tokens) if unique_tokens else one.optimum(flops)
        assert parameters is not None
        assert tokens is not None
        if unique_tokens:
            return parameters, tokens, float(RepeatedLaw(one).loss(parameters, tokens, unique_tokens))
        return parameters, tokens, float(one.loss(parameters, tokens))

    if (flops is None) == (parameters is None or tokens is None):
        raise RecipeError("plan: give either flops, or both parameters and tokens")
    n, d, loss = answer(law)
    spread = np.array([answer(sample) for sample in laws]) if laws else np.array([[n, d, loss]])
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    names = ("parameters", "tokens", "loss")
    outside = [
        name
        for name, value in (("parameters", n), ("tokens", d))
        if "range" in fitted and not fitted["range"][name][0] <= value <= fitted["range"][name][1]
    ]
    return {
        **dict(zip(names, (float(n), float(d), float(loss)), strict=True)),
        "flops": 6 * float(n) * float(d),
        "tokens_per_parameter": float(d / n),
        "intervals": {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)},
        "extrapolates": outside,
    }


def predicted_against_measured(fitted: dict[str, Any], path: str) -> list[dict[str, float]]:
    """Per run of a table: predicted loss, measured loss, and the relative error of the prediction."""
    law, runs = Law(**fitted["law"]), read_runs(path)
    predicted = np.asarray(law.loss(runs.parameters, runs.tokens))
    return [
        {"parameters": n, "tokens": d, "predicted": p, "measured": m, "error": p / m - 1}
        for n, d, p, m in zip(runs.parameters, runs.tokens, predicted, runs.loss, strict=True)
    ]
