"""What a student can copy of its teachers besides their outputs: hidden states, and how examples relate to each other.

Relations lie within one row, never across rows: so the loss does not depend on how a batch is cut.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, smooth_l1_loss


def feature_losses(student: Tensor, teacher: Tensor, kind: Literal["mse", "cosine"]) -> Tensor:
    """Per token, the mean over the width of (s − t)², or 1 − cos(s, t): both [tokens, width] → [tokens] float32.

    Romero et al. 2015 (FitNets), eq. 3, with the student's states already projected to the teacher's width.
    """
    s, t = _wide(student), _wide(teacher)
    return (s - t).square().mean(-1) if kind == "mse" else 1 - cosine_similarity(s, t, dim=-1)


def distances(items: Tensor) -> Tensor:
    """Euclidean distances of items [n, width] divided by their mean over the positive ones, [n, n]; 0 on the diagonal.

    Park et al. 2019 (RKD), eq. 6.
    """
    squares = (items[:, None] - items[None]).square().sum(-1)
    eye = torch.eye(len(items), dtype=torch.bool, device=items.device)
    found = squares.clamp(min=1e-12).sqrt().masked_fill(eye, 0.0)
    positive = found[found > 0]
    return found / positive.mean() if len(positive) else found


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all n² pairs of Huber(ψ_s, ψ_t), δ = 1: items [n, width] of each (widths may differ) → scalar.

    Park et al. 2019 (RKD), eq. 7; the diagonal counts, as in the authors' code.
    """
    return smooth_l1_loss(distances(student), distances(teacher))


def angles(items: Tensor) -> Tensor:
    """cos of the angle at item j between items i and k: [n, n, n] over (j, i, k). Park et al. 2019, eq. 8."""
    edges = normalize(items[None] - items[:, None], dim=-1)
    return edges @ edges.transpose(1, 2)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all n³ triples of Huber(cos_s, cos_t), δ = 1. Park et al. 2019 (RKD), eq. 9."""
    return smooth_l1_loss(angles(student), angles(teacher))


def items_of(states: Tensor, row: Tensor, document: Tensor, most: int) -> list[Tensor]:
    """Per row, one vector for each of its first `most` documents: the mean of its tokens' states.

    states [tokens, width], row and document int64 [tokens] → a list over rows that have tokens, of [n, width] float32.
    """
    out = []
    for number in row.unique():
        mine = row == number
        which, place, count = document[mine].unique(return_inverse=True, return_counts=True)
        sums = _wide(states).new_zeros((len(which), states.shape[1])).index_add(0, place, _wide(states[mine]))
        out.append((sums / count[:, None])[:most])
    return out


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
