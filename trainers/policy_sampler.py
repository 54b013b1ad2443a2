"""A sampler that follows the weights of a trained role, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cluster.errors import RunError
from trainers.engine import Engine
from trainers.rollout import Answer, Rollouts, Sampling


class TakesWeights(Rollouts, Protocol):
    """What samples with weights that it is given."""

    def take(self, weights: dict[str, Tensor]) -> None:
        """Use these from now on. Names as in transformers, tied ones once."""
        ...


class EngineSampler:
    """Samples from a trained role. `refresh` after every update: ZeRO 3 gathers its weights once, there."""

    def __init__(self, engine: Engine, sampler: TakesWeights):
        self.engine, self.sampler = engine, sampler

    def refresh(self) -> None:
        """Look at the engine's present weights. A collective; below ZeRO 3 no tensor is copied."""
        dtype = self.engine.compute_dtype
        if self.engine.settings.zero == 3:
            weights = {
                name: value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
                for name, value in self.engine.weights()
            }
        else:
            weights = {name: value.detach().to(dtype) for name, value in self.engine.parameters()}
            weights |= {name.removeprefix("lm."): value for name, value in self.engine.masks()}
        self.sampler.take(weights)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[int] | None = None,
        most: Sequence[int] | None = None,
    ) -> list[Answer]:
        """See `Rollouts.generate`. Not a collective: ranks may have unequal work."""
        return self.sampler.generate(prompts, sampling, numbers, most)


def gap(trainer: Tensor, sampler: Tensor, mask: Tensor) -> list[float]:
    """[tokens, Σ|Δ|, max|Δ|] of two log-probabilities of the same tokens. All [rows, time]."""
    difference = ((trainer - sampler).abs() * mask).detach()
    return [float(mask.sum()), float(difference.sum()), float(difference.max()) if mask.any() else 0.0]


def check_gap(mean: float, limit: float, step: int) -> None:
    """Raises RunError when sampler and trainer disagree about the same weights by more than `limit` nats per token."""
    if not mean <= limit:
        raise RunError(
            f"step {step}: sampler and trainer differ by {mean:.4g} nats per token on the same weights, the limit is "
            f"{limit:g}: the sampler did not get the last update, or the two compute differently; train in fp32 to see "
            "which, or raise max_gap and switch truncated importance weights on"
        )
