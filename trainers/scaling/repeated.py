"""The law for repeated data: what a second pass over the same tokens is worth. Muennighoff et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from trainers.scaling.law import Law

C4 = Law(
    E=float(np.exp(0.6254804)), A=float(np.exp(6.255414)), B=float(np.exp(7.3049974)), alpha=0.3526596, beta=0.3526596
)
"""The single-epoch law on C4 under the published decay constants (α and β tied)."""


@dataclass(frozen=True)
class RepeatedLaw:
    """E + A/N'^α + B/D'^β with effective sizes that saturate:

    D' = U_D + U_D R_D* (1 − e^{−R_D / R_D*}),  R_D = max(D / U_D − 1, 0), U_D unique tokens
    N' = U_N + U_N R_N* (1 − e^{−R_N / R_N*}),  R_N = max(N / U_N − 1, 0), U_N = min(N, best N for U_D)
    """

    law: Law = C4
    data_decay: float = 15.387756
    """R_D*: after about that many repetitions new passes are worth little."""
    size_decay: float = 5.309743
    """R_N*: the same for parameters beyond what U_D tokens call for."""

    def loss(self, n: np.ndarray | float, d: np.ndarray | float, unique: np.ndarray | float) -> np.ndarray | float:
        """Loss of n parameters trained on d tokens, of which `unique` are different."""
        u_d = np.minimum(unique, d)
        data = u_d + u_d * self.data_decay * (1 - np.exp(-np.maximum(d / u_d - 1, 0) / self.data_decay))
        u_n = np.minimum(n, self.law.parameters_for(u_d))  # type: ignore[arg-type]
        size = u_n + u_n * self.size_decay * (1 - np.exp(-np.maximum(n / u_n - 1, 0) / self.size_decay))
        return self.law.loss(size, data)

    def optimum(self, flops: float, unique: float) -> tuple[float, float, float]:
        """(N, D, loss) that are best for C = 6 N D when only `unique` tokens exist."""
        from scipy.optimize import minimize_scalar

        def at(log_n: float) -> float:
            n = np.exp(log_n)
            return float(self.loss(n, flops / 6 / n, unique))

        centre = np.log(self.law.optimum(flops)[0])
        grid = np.linspace(centre - 8, centre + 8, 801)
        lowest = grid[int(np.argmin([at(x) for x in grid]))]
        done = minimize_scalar(at, bounds=(lowest - 0.05, lowest + 0.05), method="bounded", options={"xatol": 1e-12})
        n = float(np.exp(done.x))
        return n, flops / 6 / n, float(done.fun)


def fit_decay(
    law: Law,
    n: np.ndarray,
    d: np.ndarray,
    unique: np.ndarray,
    loss: np.ndarray,
    *,
    delta: float = 1e-3,
    starts: Sequence[Sequence[float]] = tuple(product((1.0, 5.0, 20.0, 90.0), repeat=2)),
) -> RepeatedLaw:
    """R_D* and R_N* for runs with repetition, the single-epoch law given: Σ Huber of log loss, several starts."""
    from scipy.optimize import minimize

    def objective(x: np.ndarray) -> float:
        gap = np.log(RepeatedLaw(law, *np.exp(np.clip(x, -50, 50))).loss(n, d, unique)) - np.log(loss)
        small = np.abs(gap) <= delta
        return float(np.where(small, 0.5 * gap**2, delta * (np.abs(gap) - 0.5 * delta)).sum() / delta)

    found = (minimize(objective, np.log(start), method="Nelder-Mead") for start in starts)
    done = min(found, key=lambda one: float(one.fun))
    return RepeatedLaw(law, *(float(value) for value in np.exp(np.clip(done.x, -50, 50))))


def spread_of_decay(
    found: RepeatedLaw,
    n: np.ndarray,
    d: np.ndarray,
    unique: np.ndarray,
    loss: np.ndarray,
    *,
    samples: int,
    seed: int = 42,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of {"data_decay", "size_decay"}, the single-epoch law held fixed."""
    rng, start = np.random.default_rng(seed), (found.data_decay, found.size_decay)
    drawn = (rng.integers(0, len(n), len(n)) for _ in range(samples))
    laws = [fit_decay(found.law, n[i], d[i], unique[i], loss[i], starts=[start]) for i in drawn]
    low, high = np.quantile([(law.data_decay, law.size_decay) for law in laws], [0.025, 0.975], axis=0).tolist()
    return {"data_decay": (low[0], high[0]), "size_decay": (low[1], high[1])}
