"""What a training recipe would do, and every setting that recipes can have; nothing is started or written.

`corpusmill plan` refuses here what else a worker would refuse after a minute; `corpusmill steps NAME` reads settings.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.settings import Settings, assign, make, read_yaml
from pipeline.schema import DATASET_FILE
from trainers import architecture
from trainers.chain import is_chain, load_chain
from trainers.feedback.command import ACTIONS
from trainers.recipe import TRAINERS, TrainRecipe, from_mapping, load_recipe

PARTS = {
    "train": "recipe.TrainRecipe",
    "train.continue": "recipe.Continue",
    "train.schedule": "schedule.Schedule",
    "train.engine": "engine.EngineSettings",
    "train.model": "model.ModelSettings",
    "train.prune": "prune.magnitude.Magnitude",
    "train.peft.lora": "peft.lora.Lora",
    "train.peft.ia3": "peft.ia3.Ia3",
    "train.peft.prefix": "peft.prefix.PrefixTuning",
    "train.peft.prompt": "peft.prompt.PromptTuning",
    "train.peft.adapter": "peft.adapter.Adapter",
    "train.peft.loramoe": "peft.loramoe.LoraMoe",
    "train.peft.selective": "peft.selective.Selective",
    "train.peft.diff_pruning": "peft.diff_pruning.DiffPruning",
    "train.sampling": "rollout.Sampling",
    "train.tool": "tools.Tool",
    "train.vllm": "vllm.VLLM",
    **{f"trainer.{name}": f"{name}." for name in TRAINERS},
    "scale.sweep": "scaling.sweep.Sweep",
    "scale.shape": "scaling.shape.Shapes",
    "grow": "scaling.growth.Growth",
    "prune": "prune.command.Prune",
    "feedback.judge": "feedback.command.JudgeFile",
    "feedback.select": "feedback.command.SelectFile",
    "feedback.solve": "feedback.solve.Solve",
    "feedback.rlaif": "feedback.rlaif.Rlaif",
    "feedback.spin": "feedback.spin.Spin",
    "feedback.self_rewarding": "feedback.self_rewarding.SelfRewarding",
    "feedback.self_instruct": "feedback.self_instruct.SelfInstruct",
    "feedback.evol_instruct": "feedback.evol_instruct.EvolInstruct",
    "feedback.model": "feedback.writer.Model",
    "feedback.endpoint": "feedback.writer.Endpoint",
    "feedback.draw": "feedback.writer.Draw",
    "feedback.comparing": "feedback.judge.Comparing",
    "feedback.rating": "feedback.judge.Rating",
}
"""Blocks of recipes by name, and where their settings are: `objective:` of a trainer is `trainer.<its name>`."""


def settings_of(name: str) -> type[Settings]:
    """The settings class of a block of PARTS (may import torch)."""
    path, _, cls = PARTS[name].rpartition(".")
    module = importlib.import_module(f"trainers.{path}")
    found: type[Settings] = getattr(module, cls or "SETTINGS")
    return found


@functools.cache
def part_docs() -> dict[str, str]:
    """Every block's name and what its module or class says of itself in one line, read without importing anything."""
    docs: dict[str, str] = {}
    for name, place in PARTS.items():
        path, _, cls = place.rpartition(".")
        tree = ast.parse((Path(__file__).parent / (path.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        node: Any = tree
        if cls:
            node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
        docs[name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return docs


def told(path: str, command: str, changes: Sequence[str]) -> Iterator[str]:
    """What a recipe of `corpusmill <command>` (train, scale sweep or shape, feedback) would do. Raises RecipeError."""
    if command == "feedback":
        yield from _feedback(path, changes)
    elif command == "scale sweep":
        from trainers.scaling.sweep import load_sweep

        sweep = load_sweep(path, changes)
        lengths = sweep.steps or sweep.budgets or []
        kind = f"lengths up to {max(lengths):,} steps" if sweep.steps else f"budgets up to {max(lengths):.3g} FLOP"
        yield f"sweep      {len(sweep.models) * len(lengths)} runs: {len(sweep.models)} sizes, {len(lengths)} {kind}"
        for number, model in enumerate(sweep.models):
            rate = {} if sweep.rates is None else {"rate": sweep.rates[number]}
            schedule = {**sweep.base.get("schedule", {}), "decay": sweep.decay, **rate}
            # how many steps a budget lasts is known when the model is built
            length = {"steps": max(sweep.steps)} if sweep.steps else {"epochs": 1}
            yield ""
            yield from planned(from_mapping({**sweep.base, "model": model, "schedule": schedule, **length}, path))
        if sweep.predict is not None:
            yield "\nthen it fits a law, predicts the larger run, trains it and compares"
    elif command == "scale shape":
        from trainers.scaling.shape import load_shapes

        shapes = load_shapes(path, changes)
        found = shapes.check()
        yield f"shapes     {len(found)} runs of {shapes.steps:,} steps, {shapes.parameters:,} weights in the blocks"
        for one in found:
            yield f"{one.layers:>4} layers, width {one.hidden_size}, {one.heads} heads, FFN {one.intermediate_size}"
    elif is_chain(path):
        models: dict[str, str] = {}
        for name, recipe in load_chain(path, changes).items():
            yield f"stage {name}"
            yield from (f"  {line}" for line in planned(recipe, models))
            models[name] = storage.join(storage.absolute("OUT"), name, "model")
    else:
        yield from planned(load_recipe(path, changes))


def _feedback(path: str, changes: Sequence[str]) -> Iterator[str]:
    """The action is not in the file: the one whose required fields are all there and that knows most of the rest."""
    raw = read_yaml(path)
    for change in changes:
        assign(raw, change)
    names = [name for name in PARTS if name.startswith("feedback.") and name.partition(".")[2] in ACTIONS]

    def fits(name: str) -> tuple[int, int]:
        fields = settings_of(name).model_fields
        missing = sum(field.is_required() and key not in raw for key, field in fields.items())
        return (missing + sum(key not in fields for key in raw), len(fields))

    name = min(names, key=fits)
    make(settings_of(name), raw, path)
    yield f"feedback   {name.partition('.')[2]}"
    yield from (f"{key:<10} {value}" for key, value in raw.items())
    for key in ("data", "seeds", "ift", "eft", "held_out", "prompts"):
        for file in [raw.get(key, [])] if isinstance(raw.get(key), str) else raw.get(key, []):
            if not storage.exists(storage.absolute(file)):
                yield f"not there yet: {file}"


def planned(recipe: TrainRecipe, models: Mapping[str, str] | None = None) -> Iterator[str]:
    """Lines that tell what a run would do. Raises RecipeError for a setting that cannot work (imports torch).

    Data and models that are not there yet are told, not refused; `models`: those that earlier stages will make.
    """
    before = _old_recipe(recipe)
    schedule = make(settings_of("train.schedule"), recipe.rates(before or {}), "schedule")
    engine = make(settings_of("train.engine"), recipe.engine, "engine")
    make(settings_of(f"trainer.{recipe.trainer}"), recipe.objective, "objective")
    model = None
    if recipe.start_from is None and recipe.continue_ is None:
        model = make(settings_of("train.model"), recipe.model, "model")
        model.check()  # type: ignore[attr-defined]
    if recipe.peft is not None:
        method = importlib.import_module("trainers.peft.tune").method_of(recipe.peft)
        method.check(zero=engine.zero, compiled=engine.compile)  # type: ignore[attr-defined]
    yield f"trainer    {recipe.trainer}" + (f", peft: {recipe.peft['method']}" if recipe.peft else "")
    rows = tokens = vocabulary = length = 0
    about: dict[str, Any] = {}
    for folder in recipe.folders():
        path = storage.join(storage.absolute(folder), DATASET_FILE)
        if not storage.exists(path):
            yield f"data       {folder}: not there yet (no {DATASET_FILE})"
            rows = 0
            break
        about = json.loads(storage.read_bytes(path))
        path = storage.absolute(folder)
        rows, tokens = rows + about["rows"], tokens + about["tokens"]
        vocabulary, length = about["vocab_size"], about["seq_len"]
        yield f"data       {folder}: {about['rows']:,} rows of {length:,}, {about['tokens']:,} tokens"
    architecture.check_models(recipe, path if rows else None, about, missing=True)
    yield _model_line(recipe, model, vocabulary, models or {})
    if rows or recipe.steps is not None:
        steps = recipe.total_steps(rows, tokens)
        schedule.check(steps)  # type: ignore[attr-defined]
        if recipe.trainer in ("grpo", "ppo"):
            yield f"steps      {steps:,} of {recipe.batch_rows} answers to the prompts in {recipe.objective['prompts']}"
        else:
            per_step = f", about {recipe.batch_rows * tokens // rows:,} tokens each" if rows else ""
            passes = f"; {steps * recipe.batch_rows / rows:.2g} passes over the data" if rows else ""
            yield f"steps      {steps:,} of {recipe.batch_rows} rows{per_step}{passes}"
        corner = schedule.corner(steps)  # type: ignore[attr-defined]
        warmup = schedule.warmup_steps(steps)  # type: ignore[attr-defined]
        shape, rate = schedule.shape, schedule.rate  # type: ignore[attr-defined]
        decays = f", decays from step {corner:,} on" if corner < steps else ""
        unknown = before is None and "rate" in recipe.rates({}) and "rate" not in recipe.schedule
        told = "that of the old run" if unknown else f"{rate:g}"
        yield f"rate       {told}, {shape}" + ("" if shape == "range" else f": {warmup:,} steps of warmup{decays}")


def _old_recipe(recipe: TrainRecipe) -> dict[str, Any] | None:
    """The recipe of the run that this one goes on from, if it is there."""
    path = storage.join(storage.absolute(recipe.continue_.run), "recipe.yaml") if recipe.continue_ else ""
    return read_yaml(path) if path and storage.exists(path) else None


def _model_line(recipe: TrainRecipe, model: Any, vocabulary: int, models: Mapping[str, str]) -> str:
    if recipe.continue_ is not None:
        there = storage.exists(storage.absolute(recipe.continue_.run))
        return f"model      goes on from {recipe.continue_.run}" + ("" if there else ": not there yet")
    if recipe.start_from is not None:
        stage = next((name for name, folder in models.items() if folder == recipe.start_from), None)
        if stage:
            return f"model      what stage {stage} makes"
        there = storage.exists(storage.join(storage.absolute(recipe.start_from), "config.json"))
        return f"model      {recipe.start_from}" + ("" if there else ": not there yet (no config.json)")
    size = f", {model.parameters(vocabulary):,} parameters" if vocabulary else ""
    return f"model      new: {model.layers} layers, hidden_size {model.hidden_size}, {model.heads} heads{size}"
