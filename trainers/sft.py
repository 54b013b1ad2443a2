"""Instruction tuning: next tokens of the responses alone, on packed conversations with a `loss_mask`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from trainers import pretrain
from trainers.batch import IGNORE, Batch, PackedRows, StepRows
from trainers.evaluate.held_out import HeldOut, measure_all
from trainers.objective import Loss, Objective, Start, Useful
from trainers.roles import Role


class Sft(Settings):
    """Settings of the objective."""

    train_on: Literal["responses", "everything"] = Field(
        "responses", description="responses: what loss_mask marks; everything: also data without a loss_mask"
    )
    turns: Literal["all", "last"] = Field("all", description="learn every response of a conversation, or its last one")
    validation_rows: int = Field(256, ge=0, description="rows of the held-out split per evaluation; 0: all of them")
    held_out: dict[str, str] = Field(
        default_factory=dict, description="further packed data sets to evaluate on, by name: tasks that are not trained"
    )


def response_loss(summed: Tensor, batch: Batch) -> Loss:
    """The loss of a micro-batch, from the summed −log p of its targets, which are response tokens only.

    L = (1 / T) Σ_rows Σ_t m_{t+1} · −log p(x_{t+1} | x_{s..t}), with m the loss_mask of the rows, s the start of t's
    conversation and T = Σ m over the whole optimiser step (tokens at the start of a conversation left out: nothing
    predicts them). One mean over tokens, not a mean of means per row. `summed` is a scalar.
    Ouyang et al. 2022 (InstructGPT), section 3.5.
    """
    return Loss(summed, float(batch.target_count()))


def last_turn(targets: Tensor, doc_index: Tensor) -> Tensor:
    """The targets of each document's last run of targets; those of earlier responses become IGNORE.

    targets, doc_index [rows, seq_len] → [rows, seq_len]. A run is a stretch of targets without a gap.
    """
    used = targets != IGNORE
    before = torch.zeros_like(used)
    before[:, 1:] = used[:, :-1] & (doc_index[:, 1:] == doc_index[:, :-1])
    runs = (used & ~before).cumsum(1) * used
    documents = doc_index.long()
    last = torch.zeros_like(runs).scatter_reduce(1, documents, runs, "amax")
    return targets.masked_fill(runs != last.gather(1, documents), IGNORE)


class SftObjective:
    """Rows from a cursor on; a batch in which nothing is to be learned is refused and counted."""

    def __init__(self, settings: Sft, start: Start):
        self.loader = start.loader()
        self.settings, self.ranks = settings, start.ranks
        if settings.turns == "last" and start.ranks.sequence > 1:
            self.loader.close()
            raise RecipeError("objective: turns: last needs whole conversations; engine: sequence gives stretches")
        steps = (replace(step, micro_batches=list(map(self._chosen, step.micro_batches))) for step in self.loader)
        nothing = "hold no target: every response is masked or cut off; look at the loss_mask of the packed data"
        self.useful = Useful(steps, Batch.target_count, start, nothing)
        if settings.train_on == "responses" and start.data.read(0, 1).loss_mask is None:
            self.loader.close()
            raise DataError(
                f"{start.data.folder}: rows without loss_mask, so prompts would be learned too; make them with "
                "tokens.chat, or set objective.train_on: everything"
            )
        held = {"": start.data.folder} if start.data.has_split("validation") else {}
        self.held_out = {}
        for name, folder in {**held, **settings.held_out}.items():
            whole = PackedRows(folder)
            split = PackedRows(folder, "validation") if whole.has_split("validation") else whole
            self.held_out[name] = HeldOut(
                split, rows=settings.validation_rows, micro_rows=start.recipe.micro_rows, ranks=start.ranks
            )

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        """The loader's steps, without those that hold no target on any rank. Raises DataError when all are so."""
        yield from self.useful

    def _chosen(self, batch: Batch) -> Batch:
        if self.settings.turns == "all":
            return batch
        return replace(batch, targets=last_turn(batch.targets, batch.doc_index))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"policy": float(batch.target_count())}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        return {"policy": response_loss(roles["policy"](batch, "loss"), batch)}

    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, float]:
        """Loss and bits per byte on held-out responses, and how many batches were refused so far in this run."""
        return {**measure_all(self.held_out, roles["policy"]), "refused_batches": float(self.useful.refused)}

    def waited(self) -> float:
        return self.loader.waited

    def close(self) -> None:
        self.loader.close()


SETTINGS = Sft


def roles(_settings: Sft, start: Start) -> dict[str, Role]:
    """The policy alone."""
    return {"policy": pretrain.policy(start)}


def objective(settings: Sft, start: Start) -> Objective:
    """Responses of packed conversations."""
    return SftObjective(settings, start)
