"""The `peft:` block of a recipe: which method, attaching it, its small file, and the plain model made of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cluster.errors import DataError, RecipeError, nearest
from cluster.settings import make
from trainers.model import PackedLM
from trainers.peft.adapter import Adapter
from trainers.peft.diff_pruning import DiffPruning
from trainers.peft.ia3 import Ia3
from trainers.peft.lora import PREFIX, Lora
from trainers.peft.loramoe import LoraMoe
from trainers.peft.method import Method, trained
from trainers.peft.prefix import PrefixTuning
from trainers.peft.prompt import PromptTuning
from trainers.peft.selective import Selective
from trainers.prune import magnitude

if TYPE_CHECKING:
    from trainers.engine import EngineSettings
    from trainers.recipe import TrainRecipe

METHODS: dict[str, type[Method]] = {
    "lora": Lora,
    "ia3": Ia3,
    "prefix": PrefixTuning,
    "prompt": PromptTuning,
    "adapter": Adapter,
    "loramoe": LoraMoe,
    "selective": Selective,
    "diff_pruning": DiffPruning,
}

FORMAT = "corpusmill.adapter/1"
HEAD = "score.weight"
"""Of a reward model: trained and saved whole, beside what the method has."""
ABOUT, TENSORS = "adapter.json", "adapter_model.safetensors"


def method_of(raw: Mapping[str, Any]) -> Method:
    """The method that a `peft:` block names, with its settings. Raises RecipeError."""
    name = raw.get("method")
    if name not in METHODS:
        raise RecipeError(
            f"peft: method must be one of {', '.join(METHODS)}, found {name!r}{nearest(str(name), METHODS)}"
        )
    return make(METHODS[name], raw, "peft")


def prepare(packed: PackedLM, recipe: TrainRecipe, engine: EngineSettings) -> None:
    """Change a new policy as the recipe's `peft` or `prune` block says. Raises RecipeError."""
    if recipe.peft is not None:
        method = method_of(recipe.peft)
        method.check(zero=engine.zero, compiled=engine.compile)
        attach(method, packed, recipe.seed)
    if recipe.prune is not None:
        masked = make(magnitude.Magnitude, recipe.prune, "prune")
        masked.check(zero=engine.zero, compiled=engine.compile)
        magnitude.attach(packed, masked)


def attach(method: Method, packed: PackedLM, seed: int) -> None:
    """Change a model so that the method is trained; its new parameters depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method.attach(packed)
    if hasattr(packed.lm, "score"):  # a reward model's head is new: no method can do without it
        packed.lm.score.requires_grad_(True)


def save(method: Method, packed: PackedLM, state: Mapping[str, Tensor], folder: str, base: str | None = None) -> None:
    """Write what was trained, and nothing of the base model: adapter.json and one safetensors file, by rename.

    `state` holds at least the trained tensors, by their names in checkpoints. Where peft knows the method, its own
    configuration lies beside and `PeftModel.from_pretrained` opens the folder.
    """
    from safetensors.torch import save_file

    mine = {name: state[name].detach().cpu().clone().contiguous() for name, _ in trained(packed)}
    head = mine.pop(HEAD, None)
    tensors = method.saved(mine)
    if head is not None:
        tensors[PREFIX + HEAD] = head
    aside = f"{folder}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    save_file(tensors, os.path.join(aside, TENSORS), metadata={"format": "pt"})
    about = {"format": FORMAT, "peft": method.model_dump(), "base": base}
    Path(aside, ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    config = method.peft_config(packed.lm)
    if config is not None:
        config.inference_mode = True
        config.base_model_name_or_path = base
        if head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", [HEAD.partition(".")[0]]
        config.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def read_method(folder: str) -> Method:
    """The method that was saved in a folder. Raises DataError."""
    try:
        about = json.loads(Path(folder, ABOUT).read_text())
    except FileNotFoundError:
        raise DataError(f"{folder}: no {ABOUT}; expected the adapter/ folder of a training run with peft") from None
    if about.get("format") != FORMAT:
        raise DataError(f"{folder}: format {about.get('format')!r}, this version reads {FORMAT!r}")
    return method_of(about["peft"])


def load(packed: PackedLM, folder: str) -> Method:
    """Put a saved adapter onto its base model (not yet attached). Raises DataError when it does not fit."""
    method = read_method(folder).reopened()
    attach(method, packed, 0)
    file = read_tensors(folder)
    head = file.pop(PREFIX + HEAD, None)
    put(packed, method.loaded(file, packed.lm) | ({} if head is None else {HEAD: head}), folder)
    return method


def read_tensors(folder: str) -> dict[str, Tensor]:
    """The tensors of a saved adapter by their names in the file."""
    from safetensors.torch import load_file

    return load_file(os.path.join(folder, TENSORS))


@torch.no_grad()
def put(packed: PackedLM, state: Mapping[str, Tensor], where: str, *, whole: bool = False) -> None:
    """Set the trained parameters (`whole`: all parameters and buffers) from tensors by their names in checkpoints."""
    into = (
        {name.removeprefix("lm."): value for name, value in packed.named_parameters()}
        if whole
        else dict(trained(packed))
    )
    if whole:
        into |= {
            name.removeprefix("lm."): value
            for name, value in packed.named_buffers()
            if name.removeprefix("lm.") in state
        }
    if missing := sorted(set(into) - set(state)):
        raise DataError(f"{where}: holds no {missing[0]}; was it written for another model?")
    for name, value in into.items():
        if value.shape != state[name].shape:
            raise DataError(
                f"{where}: {name} has shape {tuple(state[name].shape)}, the model needs {tuple(value.shape)}"
            )
        value.copy_(state[name])


def merged(method: Method, packed: PackedLM) -> Any:
    """The plain transformers model with the same outputs; `packed` is used up. Raises RecipeError with the reason why
    there is none."""
    if (reason := method.mergeable()) is not None:
        raise RecipeError(f"peft: {method.model_dump()['method']} cannot be merged into a plain model: {reason}")
    method.merge(packed)
    packed.tuning = None
    return packed.lm
