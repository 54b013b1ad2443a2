"""How much a policy gradient's estimate scatters from answer to answer: the variance of every Ψ on the same rollouts.

The estimate of one answer is g = Σ_t Ψ_t ∇ log π(a_t | s_t). It is taken for the weights W of the output layer, where
∇_W log softmax(W h)[a] = (e_a − softmax(W h)) hᵀ needs no backward pass, and projected at random from both sides to
SIZE × SIZE numbers, which keeps squared lengths in the mean (Johnson & Lindenstrauss 1984). So it costs one forward
pass for all Ψ, under any ZeRO stage.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from trainers.batch import IGNORE

SIZE = 32


def sketched_scores(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
    """P (e_y − softmax(W h_t)) hᵀ_t Q for each position, 0 where there is no target: [tokens, SIZE²] float32.

    hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64; P, Q are the same in every call.
    """
    left = _projection(weight.shape[0], 0).to(hidden.device)
    right = _projection(weight.shape[1], 1).to(hidden.device)
    found = []
    for i in range(0, len(targets), chunk):
        h, y = hidden[i : i + chunk], targets[i : i + chunk]
        p = torch.softmax(torch.nn.functional.linear(h, weight).float(), -1)
        a = (left[y.clamp(min=0)] - p @ left) * (y != IGNORE)[:, None]
        found.append((a[:, :, None] * (h.float() @ right)[:, None, :]).flatten(1))
    return torch.cat(found)


@functools.lru_cache(maxsize=4)
def _projection(rows: int, side: int) -> Tensor:
    """Orthonormal columns, scaled so that lengths stay in the mean; few rows are kept as they are."""
    if rows <= SIZE:
        return torch.eye(rows, SIZE)
    make = torch.Generator().manual_seed(side)
    return torch.linalg.qr(torch.randn((rows, SIZE), generator=make)).Q * (rows / SIZE) ** 0.5


class Scatter:
    """Sums over answers, of one Ψ or several: add micro-batch by micro-batch, add up over ranks, then ask."""

    def __init__(self, names: list[str]):
        self.names = names
        self._sums = torch.zeros((len(names), 2 + SIZE * SIZE), dtype=torch.float64)

    def add(self, psis: Mapping[str, Tensor], scores: Tensor) -> None:
        """psis: [answers, time] each, 0 where the policy chose nothing; scores [answers, time, SIZE²]."""
        for row, name in enumerate(self.names):
            psi = psis[name].to(scores.device, scores.dtype)
            g = torch.einsum("at,atk->ak", psi, scores).double().cpu()
            self._sums[row, 0] += len(g)
            self._sums[row, 1] += (g * g).sum()
            self._sums[row, 2:] += g.sum(0)

    def sums(self) -> list[float]:
        """What ranks add up."""
        return self._sums.flatten().tolist()

    def variances(self, sums: list[float] | None = None) -> dict[str, float]:
        """Trace of the covariance of one answer's estimate by Ψ, (Σ‖g‖² − ‖Σg‖²/n) / (n − 1)."""
        whole = self._sums if sums is None else torch.tensor(sums, dtype=torch.float64).reshape(self._sums.shape)
        count, squares, mean = whole[:, 0], whole[:, 1], whole[:, 2:]
        found = (squares - (mean * mean).sum(-1) / count.clamp(min=1)) / (count - 1).clamp(min=1)
        return dict(zip(self.names, found.tolist(), strict=True))
