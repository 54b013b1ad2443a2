"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from cluster.errors import RecipeError
from cluster.settings import Settings


class Schedule(Settings):
    """Warmup, then a shape. Shares are of all steps of the run; a whole number counts steps (1: one step)."""

    shape: Literal["wsd", "cosine", "linear", "inverse_sqrt", "constant", "range"] = Field(
        "wsd",
        description="wsd: stable rate, then decay at the end (trapezoid; Hu et al. 2024, MiniCPM); range: the "
        "rate rises from final (or 1/1000) to rate, to find a good one: see the run's report",
    )
    rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="peak learning rate")
    warmup: float = Field(0.02, ge=0, description="linear warmup from 0: share of the run, or steps if >= 1")
    decay: float = Field(0.2, ge=0, description="wsd: length of the decay: share of the run, or steps if >= 1")
    decay_shape: Literal["linear", "sqrt", "cosine"] = Field(
        "linear", description="wsd: 1 - x, 1 - sqrt(x) or half a cosine over the decay"
    )
    final: float = Field(0.0, ge=0, le=1, description="rate at the end, as a share of the peak")

    @field_validator("warmup", "decay")
    @classmethod
    def _whole(cls, length: float) -> float:
        if length > 1 and not length.is_integer():
            raise ValueError("a share below 1, or a whole number of steps")
        return length

    def warmup_steps(self, steps: int) -> int:
        """Length of the warmup in a run of `steps`."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def corner(self, steps: int) -> int:
        """First step of the decay (wsd); the checkpoint before it is the trunk that runs continue from."""
        if self.shape != "wsd":
            return steps
        return max(self.warmup_steps(steps), steps - self._decay_steps(steps))

    def _decay_steps(self, steps: int) -> int:
        return round(self.decay * steps) if self.decay < 1 else int(self.decay)

    def check(self, steps: int) -> None:
        """Refuse a schedule that does not fit into `steps`. Raises RecipeError."""
        if self.warmup_steps(steps) > steps:
            raise RecipeError(f"schedule: warmup of {self.warmup_steps(steps)} steps in a run of {steps}")
        decay = self._decay_steps(steps)
        if self.shape == "wsd" and self.warmup_steps(steps) + decay > steps + 1:  # 1: shares are rounded
            raise RecipeError(
                f"schedule: warmup of {self.warmup_steps(steps)} and decay of {decay} steps in a run of {steps}; make "
                "one of them shorter"
            )

    def at(self, step: int, steps: int) -> float:
        """Learning rate of optimiser step `step` (0-based) of `steps`.

        Warmup: rate · (step + 1) / warmup. wsd: rate until the corner, then
        rate · (final + (1 − final) · d(x)), x = (step + 1 − corner) / (steps − corner), d = 1 − x, 1 − √x or
        (1 + cos πx) / 2. cosine and linear: the same with the corner at the end of warmup. inverse_sqrt:
        rate · √(warmup / (step + 1)) (Vaswani et al. 2017). range: rate · final^(1 − step / (steps − 1)), without
        warmup, final = 1/1000 where it is 0 (Smith 2017).
        """
        if self.shape == "range":
            return self.rate * float((self.final or 1e-3) ** (1 - step / max(1, steps - 1)))
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return self.rate * (step + 1) / warmup
        if self.shape == "constant":
            return self.rate
        if self.shape == "inverse_sqrt":
            return self.rate * math.sqrt(max(warmup, 1) / (step + 1))
        corner = self.corner(steps) if self.shape == "wsd" else warmup
        if step < corner:
            return self.rate
        x = min(1.0, (step + 1 - corner) / max(1, steps - corner))
        shape = self.decay_shape if self.shape == "wsd" else self.shape
        falling = {"linear": 1 - x, "sqrt": 1 - math.sqrt(x), "cosine": (1 + math.cos(math.pi * x)) / 2}[shape]
        return self.rate * (self.final + (1 - self.final) * falling)
