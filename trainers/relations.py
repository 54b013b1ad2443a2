"""What a student can copy of its teachers besides their outputs: hidden states, and how examples relate to each other.

Relations lie within one row, never across rows: so the loss does not depend on how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def attention_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], doc_index: Tensor, heads: int) -> Tensor:
    """Per token KL(A_t ‖ A_s), A = softmax(Q Kᵀ / √d) over the tokens of its document up to it, mean over heads.

    student and teacher: queries, keys and values [rows, heads, seq, width], each with numbers of its own; doc_index
    [rows, seq] → [rows, seq]. Wang et al. 2020 (MiniLM), eq. 4 to 5; where the two have other numbers of heads, all
    heads end to end are split anew into `heads` (Wang et al. 2021, MiniLMv2, section 3.1).
    """
    return _relation_losses(student[0], student[1], teacher[0], teacher[1], doc_index, heads)


def value_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], doc_index: Tensor, heads: int) -> Tensor:
    """The same of A = softmax(V Vᵀ / √d). Wang et al. 2020 (MiniLM), eq. 6 to 8."""
    return _relation_losses(student[2], student[2], teacher[2], teacher[2], doc_index, heads)


def _relation_losses(
    s_from: Tensor, s_to: Tensor, t_from: Tensor, t_to: Tensor, doc_index: Tensor, heads: int
) -> Tensor:
    length = doc_index.shape[1]
    causal = torch.ones((length, length), dtype=torch.bool, device=doc_index.device).tril()
    rows = []
    for row, documents in enumerate(doc_index):  # one row's [heads, seq, seq] at a time
        seen = causal & (documents[:, None] == documents[None])
        ours, theirs = (_log_relation(a[row], b[row], seen, heads) for a, b in ((s_from, s_to), (t_from, t_to)))
        apart = theirs.exp() * (theirs.masked_fill(~seen, 0.0) - ours.masked_fill(~seen, 0.0))
        rows.append(apart.sum(-1).mean(0))
    return torch.stack(rows)


def _log_relation(a: Tensor, b: Tensor, seen: Tensor, heads: int) -> Tensor:
    """log softmax of a bᵀ / √d over what is seen: a, b [heads, seq, width] → [`heads`, seq, seq]."""
    b = b.repeat_interleave(a.shape[0] // b.shape[0], 0)
    a, b = (_wide(x).transpose(0, 1).flatten(1).unflatten(1, (heads, -1)) for x in (a, b))
    scores = torch.einsum("qhd,khd->hqk", a, b) / a.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).log_softmax(-1)


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
