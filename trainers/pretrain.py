"""Next-token pretraining on packed rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from cluster.errors import RecipeError
from cluster.settings import Settings
from trainers.architecture import positions
from trainers.attention import pick_attention
from trainers.batch import Batch, PackedRows, StepRows
from trainers.blame import worst_rows
from trainers.engine import Engine
from trainers.evaluate import few_shot, generate, samples
from trainers.evaluate.held_out import HeldOut, measure_all
from trainers.evaluate.task import GENERATED, read_tasks
from trainers.model import PackedLM, load_tokenizer
from trainers.objective import Loss, Objective, Start
from trainers.policy_sampler import EngineSampler
from trainers.roles import Role
from trainers.rollout import Sampler


class Pretrain(Settings):
    """Settings of the objective."""

    validation_rows: int = Field(256, ge=0, description="rows of the held-out split per evaluation; 0: all of them")
    held_out: dict[str, str] = Field(
        default_factory=dict, description="further packed data sets to evaluate on, by name (a source, a language)"
    )
    tasks: tuple[str, ...] = Field(
        (), description="task files to evaluate on, by log-likelihood or generation (trainers/evaluate/task.py)"
    )
    shots: int = Field(0, ge=0, description="solved examples in front of every item of a task")
    prompts: tuple[str, ...] = Field((), description="prompts that are continued at every evaluation, for the report")
    prompt_tokens: int = Field(48, gt=0, description="tokens of each continuation")
    task_items: int = Field(200, ge=0, description="items per task and evaluation; 0: all of them")
    task_tokens: int = Field(256, gt=0, description="longest answer to a task by generation, in tokens")


def next_token_loss(summed: Tensor, batch: Batch) -> Loss:
    """The loss of a micro-batch, from the summed negative log-likelihood that a role returns.

    L = (1 / T) Σ_rows Σ_t 1[y_t ≠ −100] · −log p(y_t | x_{s..t}), where s is the start of t's document, y_t the next
    token of the same document, and T the number of targets of the whole optimiser step, over ranks and
    accumulation. `summed` is the double sum over this micro-batch, a scalar; the division by T is the engine's.
    """
    return Loss(summed, float(batch.target_count()))


class PretrainObjective:
    """Batches from a cursor on; held-out loss on the validation split."""

    def __init__(self, settings: Pretrain, start: Start):
        data, ranks, micro_rows = start.data, start.ranks, start.recipe.micro_rows
        self.loader = start.loader()
        self.settings, self.ranks = settings, ranks
        tasks = read_tasks(settings.tasks, settings.task_items)
        self.scored = [task for task in tasks if task.kind not in GENERATED]
        self.written = [task for task in tasks if task.kind in GENERATED]
        self.positions = positions(start.lm.config)
        generate.check_room(self.written, tokens=settings.task_tokens, positions=self.positions)
        if self.written and (start.recipe.peft is not None or start.recipe.prune is not None):
            raise RecipeError(
                f"objective: tasks: {self.written[0].name} is answered by whole weights, not peft or prune"
            )
        self._sampler: EngineSampler | None = None
        if tasks or settings.prompts:
            self.tokenizer = load_tokenizer(data.tokenizer)
        folders = {"": data.folder} if data.has_split("validation") else {}
        self.held_out = {}
        for name, folder in {**folders, **settings.held_out}.items():
            whole = PackedRows(folder)
            split = PackedRows(folder, "validation") if whole.has_split("validation") else whole
            self.held_out[name] = HeldOut(split, rows=settings.validation_rows, micro_rows=micro_rows, ranks=ranks)

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        return self.loader

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"policy": float(batch.target_count())}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        return {"policy": next_token_loss(roles["policy"](batch, "loss"), batch)}

    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, Any]:
        """Loss and bits per byte of the data set's own held-out split and of the named ones; tasks; samples."""
        figures: dict[str, Any] = {**measure_all(self.held_out, roles["policy"])}
        if self.scored:
            figures |= few_shot.measure(
                roles["policy"],
                self.scored,
                self.tokenizer,
                shots=self.settings.shots,
                seq_len=self.loader.data.seq_len,
                micro_rows=self.loader.micro_rows,
                ranks=self.ranks,
            )
        if self.written:
            figures |= self._answers(roles["policy"])
        if self.settings.prompts:
            figures["samples"] = samples.continued(
                roles["policy"],
                self.tokenizer,
                self.settings.prompts,
                tokens=self.settings.prompt_tokens,
                micro_rows=self.loader.micro_rows,
                seq_len=self.loader.data.seq_len,
            )
        return figures

    def _answers(self, policy: Any) -> dict[str, float]:
        """Figures of the tasks whose answers the model writes. A collective."""
        if self._sampler is None:
            self._sampler = EngineSampler(policy, Sampler(policy.module.lm.config, self.tokenizer, self.ranks.device))
        self._sampler.refresh()
        return generate.measure(
            self._sampler,
            self.written,
            self.tokenizer,
            shots=self.settings.shots,
            tokens=self.settings.task_tokens,
            positions=self.positions,
            ranks=self.ranks,
        )

    def worst_rows(self, roles: Mapping[str, Role], rows: StepRows) -> list[dict[str, Any]]:
        """The rows that a spike of the loss comes from."""
        return worst_rows(roles["policy"], rows, self.loader.data, self.ranks, self.loader.micro_rows)

    def waited(self) -> float:
        return self.loader.waited

    def close(self) -> None:
        self.loader.close()


SETTINGS = Pretrain


def policy(start: Start) -> Engine:
    """The trained language model of a run."""
    packed = PackedLM(start.lm, pick_attention(start.ranks.device, start.engine.attention))
    if start.recipe.peft is not None or start.recipe.prune is not None:
        from trainers.peft.tune import prepare

        prepare(packed, start.recipe, start.engine)
    packed.sequence_group = start.ranks.sequence_group()
    return Engine(packed, start.engine, start.ranks, start.recipe.micro_rows)


def roles(_settings: Pretrain, start: Start) -> dict[str, Role]:
    """The policy alone."""
    return {"policy": policy(start)}


def objective(settings: Pretrain, start: Start) -> Objective:
    """Next tokens of packed rows."""
    return PretrainObjective(settings, start)
