"""Where checkpoints lie, and how one becomes visible at once: by rename on a disk, on S3 by its description put last.

    FOLDER/step-00000100/checkpoint.json    its presence says that the checkpoint is whole
                         state-….safetensors, state-….safetensors.sum    a file of tensors, its size and CRC-32

Unfinished ones are step-….tmp on a disk, and on S3 folders without that file. Imports no torch.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.errors import DataError

ABOUT = "checkpoint.json"


def published(folder: str) -> list[str]:
    """The paths of all whole checkpoints, oldest first."""
    if storage.is_s3(folder):
        paths = {posixpath.dirname(one.path) for one in storage.list_files(folder) if one.path.endswith(f"/{ABOUT}")}
        return sorted(path for path in paths if posixpath.basename(path).startswith("step-"))
    found = (path.parent for path in Path(folder).glob(f"step-*/{ABOUT}"))
    return sorted(str(path) for path in found if not path.suffix)


def about(path: str) -> dict[str, Any]:
    """The description of a checkpoint. Raises FileNotFoundError, or DataError for one that is no JSON."""
    try:
        return json.loads(storage.read_bytes(storage.join(path, ABOUT)))  # type: ignore[no-any-return]
    except ValueError as error:
        raise DataError(f"{path}: {ABOUT} is damaged: {error}") from None


def files(world: int) -> list[str]:
    """The names of the files of tensors of a checkpoint that so many ranks wrote."""
    return [f"state-{rank:05d}-of-{world:05d}.safetensors" for rank in range(world)]


def seal(file: str, target: str) -> None:
    """Write beside `target`, where a local file will come to lie, what `damage` compares it with."""
    storage.write_bytes(f"{target}.sum", f"{os.path.getsize(file)} {_sum(file):08x}\n".encode())


def _sum(file: str) -> int:
    """CRC-32 of a local file, about 1 GB/s."""
    found = 0
    with open(file, "rb") as data:
        while piece := data.read(1 << 24):
            found = zlib.crc32(piece, found)
    return found


def damage(path: str, *, content: bool = True) -> str | None:
    """What is wrong with a checkpoint: a file that is absent, cut short or, on a disk, changed (`content`); or None."""
    try:
        names = files(int(about(path)["world"]))
    except (DataError, KeyError, TypeError) as error:
        return f"{ABOUT} is damaged: {error}"

    def of_file(name: str) -> str | None:
        file = storage.join(path, name)
        if not storage.exists(file):
            return f"{name} is not there"
        if not storage.exists(f"{file}.sum"):  # earlier versions wrote none
            return None
        size, told = storage.entry(file).size, storage.read_bytes(f"{file}.sum").split()
        if size != int(told[0]):
            return f"{name} has {size:,} bytes, {int(told[0]):,} were written"
        if content and not storage.is_s3(file) and _sum(file) != int(told[1], 16):
            return f"the content of {name} is not what was written"
        return None

    with ThreadPoolExecutor(min(8, len(names))) as pool:
        return next((wrong for wrong in pool.map(of_file, names) if wrong), None)


def set_damaged_aside(folder: str) -> Iterator[str]:
    """From the newest checkpoint back to the first whole one: rename the damaged; what to tell of each.

    On S3, where nothing is renamed, a damaged one loses its description. Call while no worker runs.
    """
    for path in reversed(published(folder)):
        wrong = damage(path)
        if wrong is None:
            return
        if storage.is_s3(path):
            storage.delete(storage.join(path, ABOUT))
        else:
            shutil.rmtree(f"{path}.damaged", ignore_errors=True)
            os.replace(path, f"{path}.damaged")
        left = published(folder)
        yield f"{path} is damaged ({wrong}); going on from {posixpath.basename(left[-1]) if left else 'the start'}"


def place_of(folder: str, step: int) -> str:
    """The path of a step's checkpoint."""
    return storage.join(folder, f"step-{step:08d}")


def aside_of(path: str) -> str:
    """Where its files are written before it is published."""
    return path if storage.is_s3(path) else f"{path}.tmp"


def publish(path: str, description: dict[str, Any]) -> None:
    """Make a checkpoint visible, when all its other files lie in `aside_of(path)`; an old one of that step goes."""
    text = (json.dumps(description, indent=1) + "\n").encode()
    aside = aside_of(path)
    storage.write_bytes(storage.join(aside, ABOUT), text)
    if not storage.is_s3(path):
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        sync(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a checkpoint, first its name or, on S3, its description: half of one is never taken for a whole."""
    if not storage.is_s3(path):
        shutil.rmtree(aside_of(path), ignore_errors=True)
        os.replace(path, aside_of(path))
        shutil.rmtree(aside_of(path), ignore_errors=True)
        return
    storage.delete(storage.join(path, ABOUT))
    for one in list(storage.list_files(path)):
        storage.delete(one.path)


def clear_unfinished(folder: str) -> None:
    """Remove what killed writers left; call while no worker runs."""
    if not storage.is_s3(folder):
        for unfinished in Path(folder).glob("step-*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return
    whole = set(published(folder))
    for one in list(storage.list_files(folder)):
        path = posixpath.dirname(one.path)
        if path not in whole and posixpath.basename(path).startswith("step-"):
            storage.delete(one.path)


def sync(path: str) -> None:
    """Wait until a local file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
