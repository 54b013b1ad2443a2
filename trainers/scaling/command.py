"""`corpusmill scale`: fit a law to runs, plan from a law, predict. Tables in, tables out; nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest
from trainers.scaling import isoflop
from trainers.scaling.law import COEFFICIENTS, Law, bootstrap, fit, undetermined, without_worst
from trainers.scaling.repeated import C4, RepeatedLaw, fit_decay, spread_of_decay
from trainers.scaling.table import Runs, read_runs


def fit_law(
    path: str,
    *,
    drop_worst: int = 0,
    tied: bool = False,
    samples: int = 1000,
    seed: int = 42,
    where: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """L(N, D) fitted to the runs in a table: {"law", "exponent", "intervals" (95 %), "undetermined", "error",
    "objective", "runs", "repeating", "left_out", "columns", "range", "samples"}.

    `undetermined` names the coefficients that these runs leave open (`law.undetermined`); `error` is the mean and the
    largest relative error of the fitted runs. `range` says over what range of N and D the law was fitted: outside, it
    is an extrapolation.
    """
    runs = read_runs(path, where, columns)
    if drop_worst and not 0 <= drop_worst <= len(runs) - 6:
        raise RecipeError(f"--drop-worst {drop_worst} of {len(runs)} runs: 6 or more must be left for 5 coefficients")
    n, d, loss = without_worst(runs.parameters, runs.tokens, runs.loss, drop_worst)
    kinds = len(set(n.tolist())), len(set(d.tolist()))
    if len(n) < 6 or min(kinds) < 2:
        raise DataError(
            f"{path}: {len(n)} runs of {kinds[0]} sizes and {kinds[1]} lengths; the law's 5 coefficients need 6 runs "
            "or more, of 2 sizes and 2 lengths at least (`scale kaplan` fits one variable)"
        )
    found = fit(n, d, loss, tied=tied)
    laws = bootstrap(n, d, loss, found, samples=samples, seed=seed, tied=tied)
    off = np.abs(np.asarray(found.law.loss(n, d)) / loss - 1)
    return {
        "law": asdict(found.law),
        "exponent": found.law.exponent,
        "intervals": {name: found.interval(laws, name) for name in (*COEFFICIENTS, "exponent")},
        "undetermined": undetermined(found.law, n, d, loss, tied=tied),
        "error": {"mean": float(off.mean()), "largest": float(off.max())},
        "objective": found.objective,
        "runs": found.runs,
        "repeating": int(_repeating(runs).sum()),
        "left_out": runs.repeats,
        "columns": runs.columns,
        "range": {"parameters": [n.min(), n.max()], "tokens": [d.min(), d.max()]},
        "samples": [asdict(law) for law in laws],
    }


def _repeating(runs: Runs) -> np.ndarray:
    """[runs] whether a run saw tokens again."""
    return np.asarray(runs.tokens > 1.001 * runs.unique_tokens)


def fit_isoflop(
    path: str, method: str = "akima", where: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """N*(C) through the minima of the IsoFLOP curves of a table whose runs share budgets, within 2 %.

    Raises DataError when fewer than two budgets have 3 or more sizes.
    """
    if method not in ("akima", "parabola"):
        raise RecipeError(f"isoflop method '{method}'{nearest(method, ['akima', 'parabola'])}")
    runs = read_runs(path, where, columns)
    curves: dict[float, list[tuple[float, float]]] = {}
    budget = 0.0
    for flops, parameters, loss in sorted(
        zip(*(a.tolist() for a in (runs.flops, runs.parameters, runs.loss)), strict=True)
    ):
        if flops > 1.02 * budget:  # runs are of whole steps
            budget = flops
        curves.setdefault(budget, []).append((parameters, loss))
    for flops, points in curves.items():
        sizes_seen = [n for n, _ in points]
        if len(set(sizes_seen)) < len(sizes_seen):
            twice = next(n for n in sizes_seen if sizes_seen.count(n) > 1)
            raise DataError(
                f"{path}: {sizes_seen.count(twice)} runs of {twice:.4g} parameters at {flops:.4g} FLOP; a curve has "
                "one loss per size: choose among setups or seeds with --where COLUMN=VALUE"
            )
    wide = {c: points for c, points in curves.items() if len({n for n, _ in points}) >= 3}
    if len(wide) < 2:
        raise DataError(
            f"{path}: {len(runs)} runs at {len(curves)} budgets, of which {len(wide)} have 3 or more sizes; IsoFLOP "
            "curves need two such budgets or more"
        )
    sizes, valleys = isoflop.best_sizes(wide, method)  # type: ignore[arg-type]
    losses = isoflop.power_law([v.flops for v in valleys], [v.loss for v in valleys])
    return {"sizes": asdict(sizes), "losses": asdict(losses), "valleys": [asdict(v) for v in valleys]}


def fit_single(
    path: str, where: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Kaplan's laws of one variable, L(N), L(D) and L(C) = (scale / x)^exponent, each through the runs that no smaller
    x beats: the best that N parameters, D tokens or C FLOP reached while the other two were ample.

    {"parameters": {"exponent", "interval" (95 %), "scale", "r2", "points", "values", "chance"}, …}: `points` of so many
    different `values` are on that frontier, and `chance` is the probability that losses without any order would give as
    many. A variable with fewer than 3 such runs is left out. Raises DataError when that leaves none.
    """
    runs = read_runs(path, where, columns)
    found: dict[str, dict[str, Any]] = {}
    for name in ("parameters", "tokens", "flops"):
        values = getattr(runs, name)
        x, y = isoflop.frontier(values, runs.loss)
        if len(x) >= 3:
            law = isoflop.power_law(x, y)
            assert law.interval is not None
            found[name] = {
                "exponent": -law.exponent,
                "interval": (-law.interval[1], -law.interval[0]),
                "scale": float(np.exp(np.log(law.coefficient) / -law.exponent)),
                "r2": law.r2,
                "points": len(x),
                "values": len(np.unique(values)),
                "chance": isoflop.by_chance(len(x), len(np.unique(values))),
            }
    if not found:
        raise DataError(
            f"{path}: {len(runs)} runs, but fewer than 3 of different size, length or compute improve on each other"
        )
    return found


def fit_repeated(
    path: str,
    fitted: dict[str, Any] | None = None,
    where: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    *,
    samples: int = 100,
) -> dict[str, Any]:
    """The law of repeated data for a table with unique_tokens or epochs: what `fit_law` gave, with data_decay (R_D*)
    and size_decay (R_N*), which `plan` then takes, their 95 % intervals, and whether they are `undetermined`.

    Without a law of before, one is fitted to the table's runs of a single epoch. Raises DataError when no run repeats
    data.
    """
    runs = read_runs(path, where, columns)
    again = _repeating(runs)
    if not again.any():
        raise DataError(
            f"{path}: none of {len(runs)} runs repeats data (tokens above unique_tokens, or epochs above 1); `scale "
            "fit` is for those"
        )
    if fitted is None:
        n, d, loss = (values[~again] for values in (runs.parameters, runs.tokens, runs.loss))
        if len(n) < 6:
            raise DataError(
                f"{path}: {len(n)} runs of one epoch, 6 or more give the law that repetition is held against; "
                "or give one with --law (a file of `scale fit`, or c4 for the published one)"
            )
        found = fit(n, d, loss)
        fitted = {"law": asdict(found.law), "undetermined": undetermined(found.law, n, d, loss)}
    law = Law(**fitted["law"])
    table = (runs.parameters, runs.tokens, runs.unique_tokens, runs.loss)
    repeated = fit_decay(law, *table)
    spread = spread_of_decay(repeated, *table, samples=samples)
    wild = [name for name, (low, high) in spread.items() if not 0 < high < 30 * low or not 1e-2 < low < 1e3]
    off = np.asarray(repeated.loss(runs.parameters, runs.tokens, runs.unique_tokens)) - runs.loss
    return {
        **fitted,
        "data_decay": repeated.data_decay,
        "size_decay": repeated.size_decay,
        "intervals": {**fitted.get("intervals", {}), **spread},
        "undetermined": [*fitted.get("undetermined", []), *wild],
        "repeating": int(again.sum()),
        "runs": len(runs),
        "error": {"nats": float(np.abs(off).mean())},
    }


PUBLISHED: dict[str, dict[str, Any]] = {"c4": {"law": asdict(C4)}}
"""Laws by name: C4 of Muennighoff et al. 2023, whose decay constants are the defaults of `RepeatedLaw`."""


def plan(
    fitted: dict[str, Any],
    *,
    flops: float | None = None,
    parameters: float | None = None,
    tokens: float | None = None,
    unique_tokens: float | None = None,
) -> dict[str, Any]:
    """The best N and D for a budget, or the loss for given N and D, each with its 95 % bootstrap interval.

    With `unique_tokens`, repeated passes count as `fit_repeated` found, else as Muennighoff et al. 2023 did. Raises
    RecipeError unless either flops, or parameters and tokens are given; DataError where the law has no best size.
    """
    given = {"flops": flops, "parameters": parameters, "tokens": tokens, "unique_tokens": unique_tokens}
    wrong = [f"{name} {value:g}" for name, value in given.items() if value is not None and not 0 < value < np.inf]
    if wrong:
        raise RecipeError(f"plan: {', '.join(wrong)}: positive numbers were expected")
    if (flops is None) == (parameters is None and tokens is None) or (parameters is None) != (tokens is None):
        raise RecipeError("plan: give either flops, or both parameters and tokens")

    def answer(law: Law) -> tuple[float, float, float]:
        if parameters is not None and tokens is not None:
            return parameters, tokens, float(_predicted(fitted, law, parameters, tokens, unique_tokens or tokens))
        assert flops is not None
        return _repeated(fitted, law).optimum(flops, unique_tokens) if unique_tokens else law.optimum(flops)

    n, d, loss = answer(Law(**fitted["law"]))
    laws = [Law(**sample) for sample in fitted.get("samples", [])]
    some = [answer(law) for law in laws if flops is None or min(law.alpha, law.beta) > 0]
    low, high = np.quantile(some or [(n, d, loss)], [0.025, 0.975], axis=0)
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
        "undetermined": list(fitted.get("undetermined", [])),
    }


def _repeated(fitted: Mapping[str, Any], law: Law) -> RepeatedLaw:
    return RepeatedLaw(law, **{name: fitted[name] for name in ("data_decay", "size_decay") if name in fitted})


def _predicted(
    fitted: Mapping[str, Any], law: Law, n: np.ndarray | float, d: np.ndarray | float, unique: np.ndarray | float
) -> np.ndarray | float:
    """The loss, repeated tokens at what they are worth."""
    return _repeated(fitted, law).loss(n, d, unique) if np.any(np.less(unique, d)) else law.loss(n, d)


def predicted_against_measured(
    fitted: dict[str, Any], path: str, where: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> list[dict[str, float]]:
    """Per run of a table: predicted loss, measured loss, and the relative error of the prediction."""
    runs = read_runs(path, where, columns)
    unique = runs.unique_tokens if "data_decay" in fitted else runs.tokens
    predicted = np.asarray(_predicted(fitted, Law(**fitted["law"]), runs.parameters, runs.tokens, unique))
    return [
        {"parameters": n, "tokens": d, "predicted": p, "measured": m, "error": p / m - 1}
        for n, d, p, m in zip(*(a.tolist() for a in (runs.parameters, runs.tokens, predicted, runs.loss)), strict=True)
    ]
