"""Linear layer and cross entropy in one, in chunks: the [tokens, vocabulary] logits never exist at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers.batch import IGNORE


def loss_sum(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
    """Σ_t −log softmax(W h_t)[y_t] over the positions with y_t ≠ IGNORE, as a float32 scalar (float64 in, float64 out).

    hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64. The gradients of hidden and weight
    are made in the forward pass, chunk by chunk, and scaled in the backward pass: memory is one chunk of logits,
    and nothing is computed twice. The gradient of weight is summed in float32 over chunks.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _LossSum.apply(hidden, weight, targets, chunk)  # type: ignore[no-any-return]


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
    """−log softmax(W h_t)[y_t] for each position, 0 where there is no target: [tokens] float32.

    For losses that weigh tokens differently (preference, policy gradient). Logits are computed again in the
    backward pass, chunk by chunk.
    """
    pieces = [
        checkpoint(_chunk_losses, hidden[i : i + chunk], weight, targets[i : i + chunk], use_reentrant=False)
        for i in range(0, len(targets), chunk)
    ]
    return torch.cat(pieces)


def misses(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
    """1 for each position whose target is not the likeliest token, 0 elsewhere: [tokens] float32."""
    pieces = []
    for start in range(0, len(targets), chunk):
        goals = targets[start : start + chunk]
        likeliest = torch.nn.functional.linear(hidden[start : start + chunk], weight).argmax(-1)
        pieces.append(((likeliest != goals) & (goals != IGNORE)).float())
    return torch.cat(pieces)


def _chunk_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = _wide(torch.nn.functional.linear(hidden, weight))
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss sum, d loss / d logits in the dtype of hidden) of one chunk."""
    logits = _wide(hidden @ weight.T)
    used = targets != IGNORE
    index = targets.clamp(min=0).unsqueeze(1)
    normal = torch.logsumexp(logits, dim=1, keepdim=True)
    loss = ((normal - logits.gather(1, index)).squeeze(1) * used).sum()
    grad = torch.exp(logits - normal)
    grad = grad.scatter_add(1, index, torch.full_like(index, -1, dtype=grad.dtype))
    return loss, (grad * used.unsqueeze(1)).to(hidden.dtype)


_compiled: dict[str, Any] = {}


def _chunk_on(device: torch.device) -> Any:
    """The chunk function, compiled once on GPUs, where it is bound by memory traffic."""
    if device.type != "cuda":
        return _chunk
    if "cuda" not in _compiled:
        _compiled["cuda"] = torch.compile(_chunk, dynamic=False)
    return _compiled["cuda"]


class _LossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        function = _chunk_on(hidden.device)
        total = torch.zeros((), dtype=_wide(hidden[:0]).dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            loss, grad_logits = function(hidden[part], weight, targets[part])
            total += loss
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[part]
        ctx.save_for_backward(
            *(g if g is not None else torch.empty(0, device=hidden.device) for g in (grad_hidden, grad_weight))
        )
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        hidden = grad_hidden * scale.to(grad_hidden.dtype) if ctx.needs_input_grad[0] else None
        weight = (grad_weight * scale).to(ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        return hidden, weight, None, None
