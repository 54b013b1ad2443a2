"""Checkpoints that know nothing of ranks or ZeRO stages, written aside and published at once, on a disk or on S3.

    OUT/checkpoints/step-00000100/checkpoint.json               step, data cursor, optimiser steps, kind, recipe
                                  state-00000-of-00002.safetensors   whole float32 tensors, each in one of the files
                                  state-00000-of-00002.safetensors.sum   its size and CRC-32

Every rank writes the tensors whose number is its own, in a thread; rank 0 publishes when all files are complete.
Only files are involved, no collective: a rank that saves keeps no other waiting.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.errors import DataError, RunError
from trainers import shelf
from trainers.engine import Engine
from trainers.ranks import Ranks

FORMAT = "corpusmill.checkpoint/1"
REGULAR, KEPT, CORNER, FINAL = "regular", "kept", "corner", "final"


@dataclass(frozen=True)
class Place:
    """Where a run stands: what a checkpoint says besides its tensors."""

    step: int
    """Optimiser steps done."""
    cursor: int
    """Global rows consumed: the next step begins at this row."""
    tokens: int
    """Targets trained on so far."""
    kind: str = REGULAR
    """regular, kept (a step of `save_at`), corner (before the decay: the trunk that runs continue from) or final."""
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    """Per trained role."""
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    """Folders, shares, first rows and fingerprints of the rows it has seen."""
    state: dict[str, float] = field(default_factory=dict)
    """What the objective needs to go on, beside the cursor."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Of the model: {"model": settings, "start_from": folder or None}."""


def published(folder: str) -> list[tuple[Place, str]]:
    """All complete checkpoints of a folder (local or s3://), oldest first."""
    return [(read_place(path), path) for path in shelf.published(folder)]


def latest(folder: str) -> tuple[Place, str] | None:
    """The newest complete checkpoint, or None."""
    paths = shelf.published(folder)
    return (read_place(paths[-1]), paths[-1]) if paths else None


def read_place(path: str) -> Place:
    """The description of one checkpoint. Raises DataError when there is none or of another format."""
    about = _about(path)
    about.pop("world")
    return Place(**about)


def _about(path: str) -> dict[str, Any]:
    try:
        about = shelf.about(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no checkpoint.json; a folder step-… below checkpoints/ was expected") from None
    if about.pop("format", None) != FORMAT:
        raise DataError(f"{path}: not a checkpoint of this version ({FORMAT})")
    return about


def files(path: str) -> list[str]:
    """The names of a checkpoint's files of tensors."""
    return shelf.files(int(_about(path)["world"]))


class Writer:
    """Saves the trained roles of one run. One save is in flight at most; a second one waits for it."""

    def __init__(self, folder: str, ranks: Ranks, *, keep: int, keep_every: int = 0):
        """Keep the last `keep` regular checkpoints, each `keep_every`-th step, and all others."""
        self.folder, self.ranks, self.keep, self.keep_every = folder, ranks, keep, keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, roles: Mapping[str, Engine], place: Place) -> str:
        """Copy this rank's tensors to host memory and write them behind the training. A collective until it returns."""
        self.wait()
        mine: dict[str, Tensor] = {f"rng/{name}": value for name, value in _random_state().items()}
        number = 0
        for role, engine in roles.items():
            for kind, name, value in engine.state():
                if number % self.ranks.world == self.ranks.rank:
                    mine[f"{role}/{kind}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
                number += 1
        path = shelf.place_of(self.folder, place.step)
        self._thread = threading.Thread(target=self._write, args=(mine, place, path), name="checkpoint")
        self._thread.start()
        return path

    def wait(self) -> None:
        """Return when the save in flight is on disk. Raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the save in flight, if anything did by now."""
        if self._error is not None:
            error, self._error = self._error, None
            raise RunError(
                f"a checkpoint below {self.folder} could not be written: {error}. When it can be, the same command "
                "goes on from the one before"
            ) from error

    def _write(self, tensors: dict[str, Tensor], place: Place, path: str) -> None:
        try:
            from safetensors.torch import save_file

            target = storage.join(shelf.aside_of(path), shelf.files(self.ranks.world)[self.ranks.rank])
            if storage.is_s3(target):
                with tempfile.TemporaryDirectory() as own:
                    file = os.path.join(own, "state")
                    save_file(tensors, file)
                    shelf.seal(file, target)
                    storage.copy(file, target)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                save_file(tensors, f"{target}.part")
                shelf.sync(f"{target}.part")
                shelf.seal(f"{target}.part", target)
                os.replace(f"{target}.part", target)
            if self.ranks.rank == 0:
                self._publish(place, path)
        except BaseException as error:
            self._error = error

    def _publish(self, place: Place, path: str, patience: float = 1800.0) -> None:
        """Wait for the files of all ranks, then make the checkpoint visible at once, and drop old ones."""
        aside = shelf.aside_of(path)
        expected = [storage.join(aside, name) for name in shelf.files(self.ranks.world)]
        deadline = time.monotonic() + patience
        while missing := [name for name in expected if not storage.exists(name)]:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{missing} did not appear within {patience:g} s; do all nodes see this folder? "
                    "`checkpoints: s3://…` is one that they do"
                )
            time.sleep(0.2 if storage.is_s3(path) else 0.02)
        shelf.publish(path, {"format": FORMAT, "world": self.ranks.world, **asdict(place)})
        regular = [(other, old) for other, old in published(self.folder) if other.kind == REGULAR]
        for other, old in regular[: -self.keep or None]:
            if not (self.keep_every and other.step % self.keep_every == 0):
                shelf.remove(old)


def load(path: str, roles: Mapping[str, Engine], ranks: Ranks, *, moments: bool = True) -> Place:
    """Put a checkpoint's tensors into engines of any ZeRO stage on any number of ranks. A collective.

    Without `moments` only the weights come, and AdamW starts anew.
    """
    from safetensors import safe_open

    if wrong := shelf.damage(path, content=False):
        raise DataError(f"{path} is damaged: {wrong}")
    place = read_place(path)
    with contextlib.ExitStack() as stack:
        here = path
        if storage.is_s3(path):
            here = stack.enter_context(tempfile.TemporaryDirectory())
            for name in files(path):
                storage.copy(storage.join(path, name), os.path.join(here, name))
        handles = [safe_open(os.path.join(here, name), framework="pt") for name in files(path)]
        where: dict[str, Any] = {key: handle for handle in handles for key in handle.keys()}  # noqa: SIM118
        for role, engine in roles.items():

            def read(kind: str, name: str, role: str = role) -> Tensor:
                key = f"{role}/{kind}/{name}"
                if key not in where:
                    raise DataError(f"{path}: holds no {key}; was it written for another model?")
                return where[key].get_tensor(key)  # type: ignore[no-any-return]

            engine.load_state(read, place.optimizer_steps.get(role, 0) if moments else None)
        # a rank that did not exist when it was written takes another one's random state: nothing depends on equal draws
        _set_random_state(handles[ranks.rank % len(handles)])
    return place


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(handle: Any) -> None:
    keys = set(handle.keys())
    torch.set_rng_state(handle.get_tensor("rng/cpu"))
    if torch.cuda.is_available() and "rng/cuda" in keys:
        torch.cuda.set_rng_state(handle.get_tensor("rng/cuda"))
