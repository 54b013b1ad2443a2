"""Set single weights to 0: which ones, how many at which step, and masks that keep them there in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from trainers.model import PackedLM
from trainers.peft.method import Tuning, unwrap, wrap

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Scope = Literal["global", "layer", "row"]


class Magnitude(Settings):
    """The `prune:` block of a recipe. Weights that are 0 at the start stay 0 in any case."""

    sparsity: float = Field(0.0, ge=0, lt=1, description="share of the targets' weights that are 0 in the end")
    scope: Scope = Field("layer", description="weights compete in the whole model, in their matrix, or in their row")
    pattern: Literal["none", "2:4"] = Field(
        "none", description="2:4: two of four neighbours in a row stay, from `begin` on"
    )
    targets: tuple[str, ...] = Field(ALL, description="linear layers, by their last name")
    begin: int = Field(0, ge=0, description="optimiser step of the first pruning")
    end: int = Field(0, ge=0, description="step of the last one; between them sparsity rises by the cubic schedule")
    every: int = Field(1, gt=0, description="steps between prunings")

    @field_validator("pattern", mode="before")
    @classmethod
    def _not_minutes(cls, pattern: Any) -> Any:
        """YAML 1.1 reads 2:4 without quotes as two minutes and four seconds."""
        return "2:4" if pattern == 124 else pattern

    def check(self, *, zero: int, compiled: bool) -> None:
        """Refuse what cannot work. Raises RecipeError."""
        if self.end and self.end < self.begin:
            raise RecipeError(f"prune: begin {self.begin} lies after end {self.end}")
        if self.pattern == "2:4" and self.sparsity not in (0.0, 0.5):
            raise RecipeError(f"prune: pattern 2:4 makes half of the weights 0; leave out sparsity {self.sparsity}")
        if zero == 3:
            raise RecipeError("prune: masks need whole weights, which ZeRO-3 takes apart; set engine.zero to 0, 1 or 2")
        if compiled:
            raise RecipeError("prune: masks change between steps; set engine.compile: false")

    def prunes_at(self, step: int) -> bool:
        """Whether masks are made anew before the step that follows `step` ones."""
        if self.pattern == "2:4":
            return step == self.begin
        last = max(self.end, self.begin)
        return (
            self.sparsity > 0 and self.begin <= step <= last and ((step - self.begin) % self.every == 0 or step == last)
        )

    def at(self, step: int) -> float:
        """Sparsity in force: s (1 − (1 − (t − begin) / (end − begin))³), from 0 to s. Zhu & Gupta 2017, equation 1."""
        if self.end <= self.begin:
            return self.sparsity if step >= self.begin else 0.0
        done = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.sparsity * (1 - (1 - done) ** 3)


def masks(scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """True where a weight stays: the lowest `sparsity` of the scores [out, in] go, ties from the first on.

    The count is exact: round(sparsity · n) of the model's, matrix's or row's n weights.
    """
    if scope == "global":
        flat = torch.cat([value.reshape(-1) for value in scores.values()])
        kept = _kept(flat[None], sparsity)[0].split([value.numel() for value in scores.values()])
        return {name: part.view_as(value) for (name, value), part in zip(scores.items(), kept, strict=True)}
    if scope == "layer":
        return {name: _kept(value.reshape(1, -1), sparsity).view_as(value) for name, value in scores.items()}
    return {name: _kept(value, sparsity) for name, value in scores.items()}


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    """[rows, n] → bool, with round(sparsity · n) False per row."""
    go = round(sparsity * scores.shape[1])
    order = scores.argsort(dim=1, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :go], False)


def two_of_four(scores: Tensor) -> Tensor:
    """True for the two highest of every four neighbours along the input axis, [out, in]; in must be a multiple of 4."""
    if scores.shape[1] % 4:
        raise DataError(f"2:4 sparsity needs inputs in fours, found a matrix of {tuple(scores.shape)}")
    groups = scores.unflatten(1, (-1, 4))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).flatten(1)


class Masked(nn.Module):
    """A linear layer whose masked weights count as 0 and get no gradient."""

    mask: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        self.register_buffer("mask", layer.weight.detach() != 0)

    @property
    def weight(self) -> Any:
        """Of the base layer."""
        return self.base_layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.base_layer.weight * self.mask, self.base_layer.bias)


class Masks(Tuning):
    """Makes masks anew where the schedule says so. Masks are part of checkpoints, as buffers."""

    def __init__(self, layers: list[Masked], settings: Magnitude):
        super().__init__()
        self.settings = settings
        self._layers = (layers,)  # in a tuple: they are registered in the model already

    @torch.no_grad()
    def begin(self, step: int) -> None:
        s, layers = self.settings, self._layers[0]
        if not s.prunes_at(step):
            return
        # what is masked stays masked: it ranks below everything else
        scores = {str(i): torch.where(one.mask, one.weight.float().abs(), -1.0) for i, one in enumerate(layers)}
        if s.pattern == "2:4":
            made = {name: two_of_four(value) & (value >= 0) for name, value in scores.items()}
        else:
            made = masks(scores, s.at(step), s.scope)
            made = {name: value & (scores[name] >= 0) for name, value in made.items()}
        for i, layer in enumerate(layers):
            layer.mask.copy_(made[str(i)])

    def figures(self) -> dict[str, float]:
        layers = self._layers[0]
        kept = sum(int(layer.mask.sum()) for layer in layers)
        return {"sparsity": 1 - kept / sum(layer.mask.numel() for layer in layers)}


def attach(packed: PackedLM, settings: Magnitude) -> None:
    """Put masks on a model that will be trained."""
    packed.tuning = Masks(wrap(packed.lm, settings.targets, lambda layer, _: Masked(layer)), settings)


@torch.no_grad()
def merge(packed: PackedLM) -> Any:
    """The plain transformers model with zeros where the masks are; `packed` is used up."""
    for module in packed.lm.modules():
        if isinstance(module, Masked):
            module.base_layer.weight *= module.mask
    unwrap(packed.lm, Masked)
    packed.tuning = None
    return packed.lm
