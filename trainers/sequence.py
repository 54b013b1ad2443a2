"""Ulysses: several ranks share the tokens of every row, so that a row may be longer than one device can hold.

Each rank has a stretch of every row; norms, projections and the loss need no other token. Around attention the ranks of
a group swap: a stretch of all heads against whole rows of some heads, and back. Jacobs et al. 2023 (DeepSpeed Ulysses),
section 3. Attention itself is the usual kernel over whole rows, so document masks work as they do on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import RecipeError
from trainers.batch import Batch

Attend = Callable[..., tuple[Tensor, None]]


def check(size: int, *, world: int, heads: int, seq_len: int) -> None:
    """Refuse what cannot be shared by `size` ranks. Raises RecipeError with both numbers."""
    for name, number in (("workers", world), ("heads of the model", heads), ("tokens of a row", seq_len)):
        if number % size:
            raise RecipeError(
                f"engine: sequence: {size} does not divide the {number} {name}: every rank needs the same share"
            )


def stretch(batch: Batch, place: int, size: int) -> Batch:
    """The `place`-th of `size` stretches of every row; doc_index stays whole, for the mask, and tells it from a row."""
    if size == 1:
        return batch
    width = batch.input_ids.shape[1] // size
    mine = slice(place * width, (place + 1) * width)
    cut = {name: getattr(batch, name)[:, mine].contiguous() for name in ("input_ids", "position_ids", "targets")}
    return replace(batch, **cut)


class _Swap(torch.autograd.Function):
    """[size, …]: the n-th part goes to the n-th rank of the group. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = torch.empty_like(parts)
        dist.all_to_all_single(out, parts, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = grads[0].contiguous()  # before empty_like, which would keep another order
        out = torch.empty_like(parts)
        dist.all_to_all_single(out, parts, group=ctx.group)
        return out, None


def whole_rows(x: Tensor, group: Any) -> Tensor:
    """A stretch of all heads → all tokens of some: [rows, heads, seq / n, head] → [rows, heads / n, seq, head]."""
    rows, heads, length, width = x.shape
    size = dist.get_world_size(group)
    parts = x.reshape(rows, size, heads // size, length, width).transpose(0, 1).contiguous()
    swapped: Tensor = _Swap.apply(parts, group)  # type: ignore[no-untyped-call]
    return swapped.permute(1, 2, 0, 3, 4).reshape(rows, heads // size, size * length, width)


def all_heads(x: Tensor, group: Any) -> Tensor:
    """And back, as attention leaves it: [rows, seq, heads / n, head] → [rows, seq / n, heads, head]."""
    rows, length, heads, width = x.shape
    size = dist.get_world_size(group)
    parts = x.reshape(rows, size, length // size, heads, width).transpose(0, 1).contiguous()
    swapped: Tensor = _Swap.apply(parts, group)  # type: ignore[no-untyped-call]
    return swapped.permute(1, 2, 0, 3, 4).reshape(rows, length // size, size * heads, width)


def shared(attend: Attend) -> Attend:
    """An attention function for both: whole rows as before, and stretches of them where `sequence_group` is given."""

    @torch.compiler.disable
    def swapping(
        group: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if key.shape[1] % dist.get_world_size(group):  # fewer key heads than ranks: each rank gets copies of its own
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        query, key, value = (whole_rows(x, group) for x in (query, key, value))
        out, _ = attend(module, query, key, value, mask, **kwargs)
        return all_heads(out, group), None

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        group = kwargs.pop("sequence_group", None)
        if group is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        return swapping(group, module, query, key, value, attention_mask, **kwargs)

    return attention
