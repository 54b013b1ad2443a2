"""`corpusmill export`: any checkpoint of a run as a transformers folder, without workers and without the run."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Literal

import torch
from torch import Tensor

from cluster import storage
from cluster.errors import DataError, RecipeError
from trainers import checkpoint, model, shelf
from trainers.batch import PackedRows
from trainers.session import new_model


def export_checkpoint(path: str, target: str, dtype: Literal["float32", "bfloat16"] = "float32") -> str:
    """Write the policy of a checkpoint (or of a run's newest one) to `target`, as `train` does at its end; its path.

    Works while the run goes on, and for runs that were killed. Raises DataError where there is no checkpoint or it is
    of a model that is no plain language model; RecipeError for tuned runs, whose export needs their method.
    """
    if not storage.exists(storage.join(path, shelf.ABOUT)):
        found = checkpoint.latest(storage.join(path, "checkpoints")) or checkpoint.latest(path)
        if found is None:
            raise DataError(f"{path}: no checkpoint; a folder checkpoints/step-… or a run that has one was expected")
        path = found[1]
    place = checkpoint.read_place(path)
    if wrong := shelf.damage(path):
        raise DataError(f"{path} is damaged: {wrong}; export another one")
    recipe = place.recipe
    if recipe.get("peft") or recipe.get("prune") or recipe.get("trainer") == "reward":
        kind = next(name for name in ("peft", "prune", "trainer") if recipe.get(name))
        raise RecipeError(f"export: {path} is of a run with {kind}: {recipe[kind]!r}; let the run come to its end")
    data = PackedRows(place.data["parts"][0][0])
    lm = new_model(place.shape, data, 0)
    state = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in _weights(path, dict(lm.named_parameters())).items()
    }
    model.export(lm, state, data.tokenizer, target)
    return target


def _weights(path: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint. Raises DataError for one that is absent or of another shape."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        here = path
        if storage.is_s3(path):
            here = stack.enter_context(tempfile.TemporaryDirectory())
            for name in checkpoint.files(path):
                storage.copy(storage.join(path, name), os.path.join(here, name))
        for name in checkpoint.files(path):
            with safe_open(os.path.join(here, name), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith("policy/weight/"):
                        found[key.removeprefix("policy/weight/")] = file.get_tensor(key)
    for name, value in parameters.items():
        if name not in found or found[name].shape != value.shape:
            there = tuple(found[name].shape) if name in found else "nothing"
            raise DataError(f"{path}: {name}: the model needs {tuple(value.shape)}, the checkpoint holds {there}")
    return {name: found[name] for name in parameters}
