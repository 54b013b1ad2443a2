"""A training recipe: what to train, on what, how, and on how many devices. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from cluster.errors import RecipeError, nearest
from cluster.settings import Settings, assign, make, read_yaml, refuse_other
from trainers.schedule import Schedule

TRAINERS = tuple(
    file.stem for file in sorted(Path(__file__).parent.glob("*.py")) if "\nSETTINGS" in file.read_text(encoding="utf-8")
)
"""The algorithms: files with settings, roles and an objective (see objective.Start)."""


class Continue(Settings):
    """Going on from another run: its weights and AdamW moments, new data, a new schedule from step 0."""

    run: str = Field(description="folder of a training run, of its checkpoints, or of one of them (local or s3://)")
    at: Literal["corner", "final"] | int = Field(
        "corner",
        description="corner: before the decay, by default at its rate without a warmup; final: the decayed model, to "
        "re-warm; or a step",
    )
    rows: Literal["new", "next"] = Field(
        "new", description="new: those of `data`, from the first on; next: the old run's, from its first unseen one on"
    )
    replay: float = Field(0.0, ge=0, lt=1, description="share of rows from the old data, from its first unseen row on")
    moments: bool = Field(True, description="keep AdamW's moments; False begins with empty ones")


class TrainRecipe(Settings):
    """One training run. `trainer` is a file of trainers/; `objective` holds that file's own settings."""

    trainer: str = Field("pretrain", description="the algorithm: a file of trainers/")
    data: str | dict[str, float] = Field(
        description="the packed/ folder of a pipeline run (local or s3://), or several with their shares"
    )
    out: str | None = Field(None, description="folder of the run; the command line's --out wins")
    objective: dict[str, Any] = Field(default_factory=dict, description="settings of the algorithm")
    model: dict[str, Any] = Field(default_factory=dict, description="shape of a new model")
    start_from: str | None = Field(None, description="transformers folder whose weights to begin with")
    continue_: Continue | None = Field(None, alias="continue", description="go on from another run's checkpoint")
    schedule: dict[str, Any] = Field(default_factory=dict, description="learning rate over the run")
    engine: dict[str, Any] = Field(default_factory=dict, description="ZeRO stage, precision, optimiser")
    peft: dict[str, Any] | None = Field(None, description="train few parameters: {method: lora, …}, see trainers/peft/")
    prune: dict[str, Any] | None = Field(
        None, description="keep weights at 0 while training, and set more of them to 0: see trainers/prune/magnitude.py"
    )

    steps: int | None = Field(None, gt=0, description="optimiser steps; or give tokens or epochs")
    tokens: int | None = Field(None, gt=0, description="length of the run in tokens (padding not counted)")
    epochs: float | None = Field(
        None, gt=0, description="passes over `data`, replay not counted; 1 when nothing else is given"
    )
    batch_rows: int = Field(64, gt=0, description="packed rows per optimiser step, over all devices")
    micro_rows: int = Field(8, gt=0, description="packed rows per forward pass of one device")

    workers: PositiveInt | Literal["auto"] = Field("auto", description="devices; auto: every GPU, or 2 CPU processes")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: cuda where there is one")
    threads: int | None = Field(
        None, gt=0, description="CPU threads of each worker; None: 1 on CPU, a fair share on GPU"
    )
    seed: int = Field(0, ge=0, description="of the initial weights")
    validate_every: int = Field(0, ge=0, description="steps between evaluations; 0: only at the end")
    checkpoints: str | None = Field(
        None, description="folder of the checkpoints, local or s3://, that all nodes see; None: OUT/checkpoints"
    )
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: corner and end only")
    save_at: tuple[int, ...] = Field((), description="steps whose checkpoint is kept for runs that branch off there")
    keep: int = Field(2, gt=0, description="regular checkpoints to keep; corners and the last one always stay")
    keep_every: int = Field(0, ge=0, description="of the older ones, keep those of every so many steps; 0: none")
    max_restarts: int = Field(3, ge=0, description="how often lost workers are replaced before the run fails")
    stall_seconds: float = Field(900.0, gt=0, description="a rank that long in one stage is taken for hung")
    save: bool = Field(True, description="write checkpoints; False for timings")
    export: bool = Field(True, description="write a transformers folder at the end")

    @field_validator("trainer")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in ("dpo", "ipo", "simpo", "kto"):
            raise ValueError(f"'{name}' is a loss: trainer: preference, objective: {{loss: {name}}}")
        if name not in TRAINERS:
            raise ValueError(f"no trainer named '{name}'{nearest(name, TRAINERS)}")
        return name

    def plain(self) -> dict[str, Any]:
        """The recipe as it would be written in YAML."""
        return self.model_dump(by_alias=True)

    def folders(self) -> dict[str, float]:
        """The packed folders with their shares."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(self.data)

    def total_steps(self, rows: int, tokens: int) -> int:
        """Optimiser steps of the run over `data` of `rows` rows with `tokens` tokens, replayed rows beside them."""
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return max(1, round(self.tokens / (self.batch_rows * tokens / rows)))
        new = 1 - (self.continue_.replay if self.continue_ else 0.0)
        return max(1, round(rows * (self.epochs or 1.0) / new) // self.batch_rows)

    def rates(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings of the schedule; from the corner of a run on (`before`: its recipe), by default the rate there."""
        if before is None or self.continue_ is None or self.continue_.at != "corner":
            return self.schedule
        return {"rate": make(Schedule, before.get("schedule", {}), "schedule").rate, "warmup": 0, **self.schedule}

    def check(self) -> None:
        """Refuse what cannot run, before anything starts. Raises RecipeError."""
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if self.continue_ and (self.start_from or self.model):
            raise RecipeError("continue: takes its model from the old run; leave out model and start_from")
        if self.continue_ and self.continue_.rows == "next" and self.continue_.replay:
            raise RecipeError("continue: rows: next goes on with the old rows alone; replay is for rows: new")
        if self.peft is not None and (self.continue_ or not self.start_from):
            raise RecipeError("peft: tunes a trained model; name its transformers folder (an export) in start_from")
        if self.peft is not None and self.prune is not None:
            raise RecipeError("peft and prune: masks belong to weights that are trained; give one of them")
        if self.trainer in ("grpo", "ppo"):
            if self.steps is None:
                raise RecipeError(f"steps: trainer: {self.trainer} learns from samples, not rows; say how many steps")
            if self.continue_ is not None:
                raise RecipeError(f"continue: not for trainer: {self.trainer}; name the old run's model in start_from")
            self._check_samples()
        if self.engine.get("sequence", 1) > 1:
            if self.trainer not in ("pretrain", "sft"):
                raise RecipeError(f"engine: sequence: not for trainer: {self.trainer}, whose loss needs whole answers")
            if self.peft is not None or self.prune is not None:
                raise RecipeError("engine: sequence: not with peft or prune, which need whole rows")
        if len(given) > 1:
            raise RecipeError(f"give one of steps, tokens, epochs; found {' and '.join(given)}")

    def _check_samples(self) -> None:
        """What `grpo` and `ppo` need to learn from own samples, as far as it shows without a model."""
        from trainers.rewards import Scorer

        rewards, sampling = self.objective.get("rewards") or {}, self.objective.get("sampling") or {}
        if not rewards and self.objective.get("reward_model") is None:
            raise RecipeError("objective: give rewards, or a reward_model: nothing says which answer is better")
        if isinstance(rewards, Mapping):
            Scorer({name: given for name, given in rewards.items() if ":" not in name})
        samples = sampling.get("samples", 1)
        if sampling.get("temperature", 1.0) == 0:
            raise RecipeError(
                "objective.sampling: temperature: 0 always gives the same answer: nothing can be compared"
            )
        advantage = self.objective.get("advantage", "grpo")
        if self.trainer == "grpo" and advantage in ("grpo", "dr_grpo", "rloo") and samples == 1:
            raise RecipeError(f"objective.sampling.samples: {advantage} compares answers; give 2 or more")
        if self.objective.get("vllm") and (self.peft is not None or self.prune is not None):
            raise RecipeError("objective.vllm takes whole weights; with peft or prune leave vllm out")
        if isinstance(samples, int) and samples > 0 and isinstance(self.workers, int):
            self.check_whole_prompts(samples, self.workers)

    def check_whole_prompts(self, samples: int, world: int) -> None:
        """Refuse optimiser steps that would cut the answers to a prompt apart. Raises RecipeError."""
        if self.batch_rows % (samples * world):
            raise RecipeError(
                f"batch_rows: {self.batch_rows} answers per optimiser step are not whole prompts with {samples} "
                f"answers each on every one of {world} workers; make it a multiple of {samples * world}"
            )


def load_recipe(path: str, changes: Sequence[str] = ()) -> TrainRecipe:
    """The recipe in a YAML file with `path.to.field=value` changes applied. Raises RecipeError."""
    raw = read_yaml(path)
    refuse_other(raw, path, "train")
    for change in changes:
        assign(raw, change)
    return from_mapping(raw, str(path))


def from_mapping(raw: Mapping[str, Any], where: str = "recipe") -> TrainRecipe:
    """A recipe from raw fields. Raises RecipeError with the nearest valid name of a wrong one."""
    recipe = make(TrainRecipe, raw, where)
    recipe.check()
    return recipe


def algorithm(name: str) -> Any:
    """The module of a trainer (imports torch)."""
    return importlib.import_module(f"trainers.{name}")


def write(recipe: TrainRecipe, out: str) -> None:
    """The resolved recipe beside the outputs."""
    import yaml

    Path(out).mkdir(parents=True, exist_ok=True)
    Path(out, "recipe.yaml").write_text(yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True))
