"""Models by name: policy, reference, critic, reward, teacher. Trained ones are engines, the others are frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainers.batch import Batch

Want = Literal["loss", "token_losses", "misses", "logits", "values", "states", "scores"]


class Role(Protocol):
    """A model that an objective may call. Only engines have a backward pass."""

    def __call__(self, batch: Batch, want: Want = "loss") -> Tensor:
        """What `PackedLM.forward` returns for the batch; the batch is moved to the role's device."""
        ...

    def eval(self) -> None: ...

    def train(self) -> None: ...


@contextlib.contextmanager
def exact_tables(model: nn.Module) -> Iterator[None]:
    """What the block does to the dtype of `model` does not reach buffers that no checkpoint holds; they only move.

    Those are computed tables, above all the rotary frequencies: rounded to bf16 they are off by up to .4 %, which
    is radians after some hundred positions, and whoever opens the export has them exact.
    """
    tables = [
        (module, name, value)
        for module in model.modules()
        for name, value in module._buffers.items()
        if value is not None and name in module._non_persistent_buffers_set
    ]
    yield
    for module, name, value in tables:
        module._buffers[name] = value.to(module._buffers[name].device)  # type: ignore[union-attr]


class Frozen:
    """A model that is only looked at: no gradient, no optimiser, its weights in `dtype`."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
        with exact_tables(model):
            self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = device

    @torch.no_grad()
    def __call__(self, batch: Batch, want: Want = "loss") -> Tensor:
        tuned = getattr(self.model, "tuning", None) is not None
        return call(self.model, batch.to(self.device), want, tuned)

    def eval(self) -> None:
        """Nothing changes: it is always so."""

    def train(self) -> None:
        """Nothing changes: it is never trained."""


def call(model: Any, batch: Batch, want: Want, tuned: bool = False) -> Tensor:
    """The model's forward on a batch that lies on its device; a tuned one is also told whose rows they are."""
    packed = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets, want)
    return model(*packed, batch.parts) if tuned else model(*packed)  # type: ignore[no-any-return]
