"""Loss as a law of parameters and tokens: L(N, D) = E + A/N^α + B/D^β, with intervals, and the plans it gives.

Hoffmann et al. 2022 (Chinchilla, approach 3); the fit as Besiroglu et al. 2024 do it: sum of Huber losses of log L,
many starts, bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cluster.errors import DataError

Array = np.ndarray


@dataclass(frozen=True)
class Law:
    """E + A/N^α + B/D^β; N in parameters, D in tokens, loss in nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: Array | float, d: Array | float) -> Array | float:
        """Predicted loss for N parameters trained on D tokens."""
        with np.errstate(over="ignore"):  # a law that runs leave open may have any exponent
            return self.E + self.A / np.power(n, self.alpha) + self.B / np.power(d, self.beta)  # type: ignore[no-any-return]

    @property
    def exponent(self) -> float:
        """a in N* ∝ C^a: β / (α + β)."""
        return self.beta / (self.alpha + self.beta) if self.alpha + self.beta else math.nan

    def optimum(self, flops: float) -> tuple[float, float, float]:
        """(N, D, loss) that are best for C = 6 N D: N = G (C/6)^a, G = (αA / βB)^{1/(α+β)}."""
        n = self._g() * (flops / 6) ** self.exponent
        d = flops / 6 / n
        return n, d, float(self.loss(n, d))

    def parameters_for(self, tokens: float) -> float:
        """N for which `tokens` is the best D: the end of the line along which both grow together."""
        g = self._g()
        return g * (tokens * g) ** (self.beta / self.alpha)

    def _g(self) -> float:
        if min(self.alpha, self.beta) <= 0:
            raise DataError(
                f"the law has alpha {self.alpha:.3g} and beta {self.beta:.3g}: where loss does not fall with both size "
                "and length, no size is best for a budget; fit runs of more sizes and lengths, further apart"
            )
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    @classmethod
    def from_logs(cls, x: Sequence[float] | Array) -> Law:
        """From (log E, log A, log B, α, β)."""
        e, a, b = np.exp(np.clip(x[:3], -700, 700)).tolist()  # the widest that are numbers
        return cls(e, a, b, float(x[3]), float(x[4]))

    def logs(self) -> Array:
        """(log E, log A, log B, α, β)."""
        return np.array([math.log(self.E), math.log(self.A), math.log(self.B), self.alpha, self.beta])


COEFFICIENTS = ("E", "A", "B", "alpha", "beta")

STARTS = {
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""The grid of 4,500 starts of Hoffmann et al., appendix D.3 (a = log A, b = log B, e = log E)."""


def objective(x: Array, log_n: Array, log_d: Array, log_loss: Array, delta: float) -> tuple[float, Array]:
    """Σ Huber_δ(log L − logsumexp(e, a − α log N, b − β log D)) and its gradient by (e, a, b, α, β)."""
    terms = np.stack([np.full_like(log_n, x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d])
    top = terms.max(0)
    parts = np.exp(terms - top)
    whole = parts.sum(0)
    gap = top + np.log(whole) - log_loss
    small = np.abs(gap) <= delta
    value = np.where(small, 0.5 * gap**2, delta * (np.abs(gap) - 0.5 * delta)).sum()
    slope = np.where(small, gap, delta * np.sign(gap)) * parts / whole
    gradient = [slope[0], slope[1], slope[2], -slope[1] * log_n, -slope[2] * log_d]
    return float(value), np.array([part.sum() for part in gradient])


@dataclass(frozen=True)
class Fit:
    """The best law for some runs, and how well it fits."""

    law: Law
    objective: float
    runs: int

    def interval(self, samples: Sequence[Law], name: str, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap percentile interval of one coefficient (or `exponent`)."""
        values = [float(getattr(law, name)) for law in samples]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def fit(n: Array, d: Array, loss: Array, *, delta: float = 1e-3, best_starts: int = 40, tied: bool = False) -> Fit:
    """Fit the law to runs: n parameters, d tokens, loss in nats, arrays of equal length.

    All 4,500 starts are looked at; BFGS runs from the `best_starts` with the least objective. About a second. `tied`
    keeps α = β, which few runs determine better (Muennighoff et al. 2023; Gadre et al. 2024). Raises DataError for
    fewer than 6 runs or values that have no logarithm.
    """
    logs = _logs(n, d, loss)
    grid = np.array(list(product(STARTS["e"], STARTS["a"], STARTS["b"], STARTS["alpha"], STARTS["beta"])))
    grid = grid[grid[:, 3] == grid[:, 4]] if tied else grid
    values = np.concatenate([_objectives(part, *logs, delta) for part in np.array_split(grid, 20)])
    starts = grid[np.argsort(values, kind="stable")[:best_starts]]
    best = min((_descend(start, *logs, delta, tied) for start in starts), key=lambda found: found[1])
    return Fit(Law.from_logs(best[0]), best[1], len(n))


def bootstrap(
    n: Array,
    d: Array,
    loss: Array,
    found: Fit,
    *,
    samples: int = 1000,
    seed: int = 42,
    delta: float = 1e-3,
    tied: bool = False,
) -> list[Law]:
    """Laws fitted to runs drawn with replacement, each from the whole fit's optimum."""
    logs = _logs(n, d, loss)
    rng = np.random.default_rng(seed)
    start = found.law.logs()
    laws = []
    for _ in range(samples):
        drawn = rng.integers(0, len(n), len(n))
        laws.append(Law.from_logs(_descend(start, logs[0][drawn], logs[1][drawn], logs[2][drawn], delta, tied)[0]))
    return laws


def undetermined(law: Law, n: Array, d: Array, loss: Array, *, tied: bool = False) -> list[str]:
    """The coefficients that a law's runs leave open: others, far away, would fit as well.

    From the slopes of log L at the optimum and the scatter of the runs around it (at least 1e-4, as losses are rounded)
    follow standard errors: a coefficient is open when zero (for A and B a tenth or ten times) is within two of them.
    So too few sizes or lengths, a narrow range, tokens in proportion to parameters, or noise show, where bootstrap
    intervals from the one optimum would be narrow.
    """
    log_n, log_d, log_loss = _logs(n, d, loss)
    terms = np.stack(
        [np.full_like(log_n, law.E), law.A * np.exp(-law.alpha * log_n), law.B * np.exp(-law.beta * log_d)]
    )
    share = terms / terms.sum(0)
    slopes = np.stack([*share, -share[1] * log_n, -share[2] * log_d], 1)  # [runs, 5], by (e, a, b, α, β)
    if tied:
        slopes = np.column_stack([slopes[:, :3], slopes[:, 3:].sum(1)])
    gap = np.log(terms.sum(0)) - log_loss
    scatter = max(1e-4, float(np.sqrt((gap**2).sum() / max(1, len(gap) - slopes.shape[1]))))
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.linalg.norm(slopes, axis=0)
        _, singular, axes = np.linalg.svd(np.nan_to_num(slopes / sizes), full_matrices=False)
        errors = scatter * np.sqrt(((axes.T / singular) ** 2).sum(1)) / sizes
    errors = np.append(errors, errors[3:] if tied else [])
    limits = (0.5, math.log(10) / 2, math.log(10) / 2, law.alpha / 2, law.beta / 2)
    return [name for name, error, limit in zip(COEFFICIENTS, errors, limits, strict=True) if not error < limit]


def open_ones(names: Sequence[str]) -> list[str]:
    """What to say about `undetermined` coefficients; nothing where there are none."""
    told = (
        f"{', '.join(names)} not determined: quite other values fit these runs as well. Read nothing into them, and "
        "predict nothing far from the runs; more sizes and lengths, further apart, would tell"
    )
    return [told] if names else []


def without_worst(n: Array, d: Array, loss: Array, drop: int) -> tuple[Array, Array, Array]:
    """The runs without the `drop` highest losses (runs that had hardly begun to learn)."""
    keep = np.sort(np.argsort(loss, kind="stable")[: len(loss) - drop])
    return n[keep], d[keep], loss[keep]


def _logs(n: Array, d: Array, loss: Array) -> tuple[Array, Array, Array]:
    arrays = [np.asarray(values, np.float64) for values in (n, d, loss)]
    if len({len(values) for values in arrays}) != 1 or len(arrays[0]) < 6:
        raise DataError(f"a law of 5 coefficients needs at least 6 runs; found {[len(values) for values in arrays]}")
    if any(not np.isfinite(values).all() or (values <= 0).any() for values in arrays):
        raise DataError("runs need positive, finite parameters, tokens and losses")
    log_n, log_d, log_loss = (np.log(values) for values in arrays)
    return log_n, log_d, log_loss


def _objectives(grid: Array, log_n: Array, log_d: Array, log_loss: Array, delta: float) -> Array:
    """The objective at many points at once: [points]."""
    e, a, b, alpha, beta = (column[:, None] for column in grid.T)
    terms = np.stack([np.broadcast_to(e, (len(grid), len(log_n))), a - alpha * log_n, b - beta * log_d])
    top = terms.max(0)
    gap = np.abs(top + np.log(np.exp(terms - top).sum(0)) - log_loss)
    return np.where(gap <= delta, 0.5 * gap**2, delta * (gap - 0.5 * delta)).sum(1)  # type: ignore[no-any-return]


def _descend(
    start: Array, log_n: Array, log_d: Array, log_loss: Array, delta: float, tied: bool
) -> tuple[Array, float]:
    from scipy.optimize import minimize

    # the objective is of the order of δ: scaled up, so that BFGS does not stop early in its flat valley
    scale = 1.0 / delta

    def scaled(x: Array) -> tuple[float, Array]:
        value, gradient = objective(x, log_n, log_d, log_loss, delta)
        if tied:  # equal steps from equal starts
            gradient[3:] = gradient[3:].mean()
        return value * scale, gradient * scale

    function: Callable[..., tuple[float, Array]] = scaled
    done = minimize(function, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    found = np.append(done.x[:4], done.x[3]) if tied else done.x
    return found, float(done.fun) / scale
