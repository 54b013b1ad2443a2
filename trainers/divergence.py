"""Distances between a student's and its teachers' distributions over next tokens, per token; whole or top-k.

All take log-probabilities over the same buckets, [tokens, buckets]: the vocabulary, or a teacher's k likeliest tokens
and one bucket for all others. Two distributions of the same tokens differ by no less than their buckets do, and with
k = vocabulary the two are equal.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "jsd"]


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) = Σ p (log p − log q) → [tokens]. Hinton et al. 2015."""
    return _expected(teacher, student)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student ‖ teacher) → [tokens]: seeks a mode where forward KL covers all. Gu et al. 2023 (MiniLLM)."""
    return _expected(student, teacher)


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q, p the teacher. Agarwal et al. 2023 (GKD), eq. 1.

    0 < β < 1. Near 0, divided by β, it goes to forward KL; near 1, divided by 1 − β, to reverse KL.
    """
    middle = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * _expected(teacher, middle) + (1 - beta) * _expected(student, middle)


def divergence(student: Tensor, teacher: Tensor, kind: Kind, beta: float) -> Tensor:
    """The chosen one of the three, [tokens]."""
    if kind == "forward":
        return forward_kl(student, teacher)
    if kind == "reverse":
        return reverse_kl(student, teacher)
    return jsd(student, teacher, beta)


def _expected(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p − log q), where p = 0 counts nothing and gives no gradient."""
    there = p > -1e30
    return (p.exp() * (p.masked_fill(~there, 0.0) - q.masked_fill(~there, 0.0))).masked_fill(~there, 0.0).sum(-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T), in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (wide / temperature).log_softmax(-1)


def bucketed(whole: Tensor, chosen: Tensor) -> Tensor:
    """Whole log-probabilities [tokens, vocabulary] in buckets: `chosen` [tokens, k] and the rest, [tokens, k + 1].

    The rest is summed itself, not taken from 1: it stays exact where it is small. −inf where nothing is left over.
    """
    rest = whole.scatter(-1, chosen, -torch.inf)
    if chosen.shape[-1] >= whole.shape[-1]:
        tail = whole.new_full((*whole.shape[:-1], 1), -torch.inf)
    else:
        tail = rest.logsumexp(-1, keepdim=True)
    return torch.cat([whole.gather(-1, chosen), tail], -1)


def confidence(losses: Tensor, weights: Tensor) -> Tensor:
    """Weights of several teachers by how well each predicts the true token: [tokens, teachers], summing to 1.

    losses [tokens, teachers] are the teachers' −log p of it. w_k ∝ a_k (1 − exp(L_k) / Σ_j exp(L_j)), with a the fixed
    weights. Zhang et al. 2022 (CA-MKD), eq. 3. With one teacher: 1.
    """
    if losses.shape[1] == 1:
        return torch.ones_like(losses)
    raw = weights * (1 - losses.softmax(-1))
    return raw / raw.sum(-1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)
