"""Where checkpoints lie, and how one becomes visible at once: by rename on a disk, on S3 by its description put last.

    FOLDER/step-00000100/checkpoint.json    its presence says that the checkpoint is whole

Unfinished ones are step-….tmp on a disk, and on S3 folders without that file. Imports no torch.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any

from cluster import storage

ABOUT = "checkpoint.json"


def published(folder: str) -> list[str]:
    """The paths of all whole checkpoints, oldest first."""
    if storage.is_s3(folder):
        paths = {posixpath.dirname(one.path) for one in storage.list_files(folder) if one.path.endswith(f"/{ABOUT}")}
        return sorted(path for path in paths if posixpath.basename(path).startswith("step-"))
    found = (path.parent for path in Path(folder).glob(f"step-*/{ABOUT}"))
    return sorted(str(path) for path in found if path.suffix != ".tmp")


def about(path: str) -> dict[str, Any]:
    """The description of a checkpoint. Raises FileNotFoundError."""
    return json.loads(storage.read_bytes(storage.join(path, ABOUT)))  # type: ignore[no-any-return]


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
    """Remove a checkpoint; on S3 its description first, so that half of one is never taken for a whole."""
    if not storage.is_s3(path):
        shutil.rmtree(path, ignore_errors=True)
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
