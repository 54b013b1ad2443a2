"""What an algorithm is: batches for one optimiser step after another, and a loss over named roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from cluster.errors import DataError
from trainers import sequence
from trainers.batch import Batch, Loader, PackedRows, StepRows
from trainers.mixture import Mixture
from trainers.ranks import Ranks
from trainers.roles import Role

if TYPE_CHECKING:
    from trainers.engine import EngineSettings
    from trainers.memory import Footprint
    from trainers.recipe import TrainRecipe


@dataclass(frozen=True)
class Loss:
    """A sum over a micro-batch, never a mean: the engine divides by the count over the whole optimiser step."""

    total: Tensor
    """Scalar with gradient: Σ over the counted items."""
    count: float
    """How many items (tokens, sequences, pairs) were summed: what `counts` announced for this micro-batch."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further sums to log, divided by the same count; without gradient."""


class Objective(Protocol):
    """An algorithm. `fit` calls these four and knows nothing else of it."""

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        """This rank's micro-batches, one optimiser step after another, from the cursor on."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """Per trained role, how many items the loss of this micro-batch will sum. No model is needed for it."""
        ...

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        """Per trained role, its loss on one micro-batch."""
        ...

    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, Any]:
        """Held-out figures by name, the same on every rank. A collective."""
        ...

    def waited(self) -> float:
        """Seconds spent waiting for data so far."""
        ...

    def close(self) -> None:
        """Stop threads."""
        ...


@runtime_checkable
class Blaming(Protocol):
    """An objective that can say which rows of a step an alarm is about."""

    def worst_rows(self, roles: Mapping[str, Role], rows: StepRows) -> list[dict[str, Any]]:
        """The rows with the highest loss, worst first (see trainers/blame.py). A collective."""
        ...


class Useful:
    """The steps in which something is to be learned on any rank; the others are refused and counted."""

    def __init__(self, steps: Iterator[StepRows], count: Callable[[Batch], float], start: Start, nothing: str):
        """`count`: the items of a micro-batch that its loss will sum; `nothing`: what to say when no row has one."""
        self.steps, self.count, self.ranks, self.nothing = steps, count, start.ranks, nothing
        self.refused = 0
        """Optimiser steps' rows that were passed over."""
        self._most = max(1, -(-start.data.rows // start.recipe.batch_rows))

    def __iter__(self) -> Iterator[StepRows]:
        """A collective. Raises DataError when a whole pass over the data held nothing."""
        in_a_row = 0
        for step in self.steps:
            (items,) = self.ranks.sum([float(sum(self.count(batch) for batch in step.micro_batches))])
            if items:
                in_a_row = 0
                yield step
                continue
            self.refused, in_a_row = self.refused + 1, in_a_row + 1
            if in_a_row > self._most:
                raise DataError(f"rows {step.first_row} on and all {in_a_row} batches before them {self.nothing}")


@runtime_checkable
class Weighed(Protocol):
    """An objective whose loss needs other memory than that of next tokens, or that samples."""

    def footprint(self, roles: Mapping[str, Role], tokens: int) -> Footprint:
        """What it needs for micro-batches of so many positions of the run's data."""
        ...


@dataclass(frozen=True)
class Start:
    """What a run hands to its algorithm's module, which has

    SETTINGS                      the class of its settings
    roles(settings, start)        all its models by name; called before a checkpoint is loaded into the trained ones
    objective(settings, start)    the objective; called after that, when `cursor` is known
    """

    recipe: TrainRecipe
    data: PackedRows | Mixture
    ranks: Ranks
    engine: EngineSettings
    lm: Any
    """The transformers model to begin with, in float32 on the CPU; the same on every rank."""
    cursor: int = 0
    state: dict[str, float] = field(default_factory=dict)
    """What the objective said of itself (StepRows.state) where the run goes on."""

    def _stretch(self, batch: Batch) -> Batch:
        return sequence.stretch(batch, self.ranks.place, self.ranks.sequence)

    def loader(self) -> Loader:
        """This rank's rows from the cursor on, or its stretch of them."""
        return Loader(
            self.data,
            rows_per_step=self.recipe.batch_rows,
            micro_rows=self.recipe.micro_rows,
            rank=self.ranks.data_rank,
            world=self.ranks.data_world,
            cursor=self.cursor,
            part=None if self.ranks.sequence == 1 else self._stretch,
        )
