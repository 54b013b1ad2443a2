"""Models by name: policy, reference, critic, reward, teacher. Trained ones are engines, the others are frozen."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainers.batch import Batch

Want = Literal["loss", "token_losses", "logits", "values", "states", "scores"]


class Role(Protocol):
    """A model that an objective may call. Only engines have a backward pass."""

    def __call__(self, batch: Batch, want: Want = "loss") -> Tensor:
        """What `PackedLM.forward` returns for the batch; the batch is moved to the role's device."""
        ...

    def eval(self) -> None: ...

    def train(self) -> None: ...


class Frozen:
    """A model that is only looked at: no gradient, no optimiser, its weights in `dtype`."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
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
