"""The best size per compute budget read from IsoFLOP curves, and power laws through them.

Hoffmann et al. 2022, approach 2; Kaplan et al. 2020 for power laws of one variable; interpolation as in
Porian et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.errors import DataError


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient · x^exponent, and the R² of the fit in logarithms."""

    coefficient: float
    exponent: float
    r2: float
    interval: tuple[float, float] | None
    """95 % of the exponent, by Student's t; None from two points, which always lie on a law."""

    def at(self, x: float) -> float:
        """y at x."""
        return float(self.coefficient * x**self.exponent)


@dataclass(frozen=True)
class Valley:
    """The minimum of one IsoFLOP curve."""

    flops: float
    parameters: float
    loss: float


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y on log x: Kaplan's L(N), L(D), L(C) without a floor, or N*(C)."""
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if len(log_x) < 2 or not np.isfinite(log_x).all() or not np.isfinite(log_y).all():
        raise DataError(f"a power law needs two or more positive points, found {len(log_x)}")
    from scipy.stats import t

    slope, intercept = (float(value) for value in np.polyfit(log_x, log_y, 1))
    rest = float(((log_y - slope * log_x - intercept) ** 2).sum())
    spread = float(((log_y - log_y.mean()) ** 2).sum())
    free, wide = len(log_x) - 2, float(((log_x - log_x.mean()) ** 2).sum())
    off = float(t.ppf(0.975, free)) * (rest / free / wide) ** 0.5 if free else np.nan
    interval = (slope - off, slope + off) if free else None
    return PowerLaw(float(np.exp(intercept)), slope, 1 - rest / spread if spread else 1.0, interval)


def frontier(x: np.ndarray, loss: np.ndarray) -> tuple[list[float], list[float]]:
    """The runs that are better than every run with a smaller or equal x, by rising x."""
    kept: tuple[list[float], list[float]] = ([], [])
    best = np.inf
    for place in np.lexsort((loss, x)):
        if loss[place] < best:
            best = float(loss[place])
            kept[0].append(float(x[place]))
            kept[1].append(best)
    return kept


def by_chance(points: int, values: int) -> float:
    """The probability that so many of `values` losses in random order, or more, are better than all before them.

    The i-th is with probability 1/i, whatever the others are.

    >>> round(by_chance(5, 5) * 120)
    1
    """
    share = np.ones(1)
    for place in range(1, values + 1):
        share = np.convolve(share, [1 - 1 / place, 1 / place])
    return float(share[points:].sum())


def valley(
    flops: float, parameters: Sequence[float], loss: Sequence[float], method: Literal["akima", "parabola"] = "akima"
) -> Valley | None:
    """The minimum of loss over log N at one budget; None when it lies at the edge of what was tried.

    akima: of an Akima interpolation of log loss (right also for lopsided curves); parabola: of a quadratic through
    the lowest point and up to three neighbours on each side.
    """
    order = np.argsort(parameters)
    x, y = np.log(np.asarray(parameters, float)[order]), np.log(np.asarray(loss, float)[order])
    if len(x) < 3:
        raise DataError(f"an IsoFLOP curve needs 3 or more sizes, {flops:.3g} FLOP has {len(x)}")
    lowest = int(np.argmin(y))
    if method == "parabola":
        around = slice(max(0, lowest - 3), lowest + 4)
        a, b, c = np.polyfit(x[around], y[around], 2)
        best = -b / (2 * a) if a > 0 else np.nan
        if not x[0] < best < x[-1]:
            return None
        return Valley(flops, float(np.exp(best)), float(np.exp(a * best**2 + b * best + c)))
    from scipy.interpolate import Akima1DInterpolator

    fine = np.linspace(x[0], x[-1], 4001)
    values = Akima1DInterpolator(x, y)(fine)
    at = int(np.argmin(values))
    if at in (0, len(fine) - 1):
        return None
    return Valley(flops, float(np.exp(fine[at])), float(np.exp(values[at])))


def best_sizes(
    curves: Mapping[float, Sequence[tuple[float, float]]], method: Literal["akima", "parabola"] = "akima"
) -> tuple[PowerLaw, list[Valley]]:
    """N*(C) from {flops: [(parameters, loss), …]}: the power law through the minima, and the minima.

    Raises DataError when fewer than two curves have a minimum inside.
    """
    found = [valley(c, [n for n, _ in curves[c]], [loss for _, loss in curves[c]], method) for c in sorted(curves)]
    valleys = [v for v in found if v is not None]
    if len(valleys) < 2:
        raise DataError(f"{len(valleys)} of {len(found)} IsoFLOP curves have their minimum inside; try more sizes")
    return power_law([v.flops for v in valleys], [v.parameters for v in valleys]), valleys
