"""The files that a reader was given: found, named, checked. Their names below the root become identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster import storage
from cluster.errors import RecipeError
from pipeline.crawl import remote

File = tuple[str, storage.Entry]
"""(name below the root of its pattern, the file)"""


_MANY = 256
_GROUP_FILES, _GROUP_BYTES = 500, 1 << 20


def find(
    path: str | Sequence[str], look: Callable[[str], list[File]] = storage.find, *, at_most: int | None = None
) -> list[File]:
    """All files of one or several patterns, in order of their names, the first `at_most`."""
    patterns = (path,) if isinstance(path, str) else path
    return sorted((file for pattern in patterns for file in look(pattern)), key=lambda file: file[0])[:at_most]


def check(step: str, path: str | Sequence[str], files: Sequence[File]) -> None:
    """Refuse a reader without a file, or with two of one name. Raises RecipeError."""
    if not files:
        folders = [p for p in ((path,) if isinstance(path, str) else path) if storage.find(f"{p}/**")]
        hint = f"'{folders[0]}' matches folders alone; '{folders[0]}/**' takes the files below them" if folders else ""
        raise RecipeError(f"{step}: no file at {path!r}; {hint or 'give a file, a folder or a glob'}")
    seen: dict[str, str] = {}
    for name, entry in files:
        if _surrogates(entry.path):
            raise RecipeError(f"{step}: the name of {entry.path!r} is no UTF-8; rename the file")
        if name in seen:
            raise RecipeError(
                f"{step}: '{seen[name]}' and '{entry.path}' have the same name '{name}' below their roots, so their "
                "documents would get the same identity; use one glob with a common root"
            )
        seen[name] = entry.path


def grouped(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks of very many small files put together, {"files": tasks, "bytes": their sum}; `each` takes them apart.

    A task has a cost in every phase of every later stage, some milliseconds, which a file of some lines is not worth.
    """
    if len(tasks) <= _MANY:
        return tasks
    groups: list[dict[str, Any]] = []
    for task in tasks:
        size = _GROUP_BYTES if remote.is_remote(task["path"]) else task["bytes"]  # of remote files nobody knows it
        last = groups[-1] if groups else None
        if last is None or len(last["files"]) >= _GROUP_FILES or last["bytes"] + size > _GROUP_BYTES:
            groups.append(last := {"files": [], "bytes": 0})
        last["files"].append(task)
        last["bytes"] += size
    return groups


def each(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks of single files in one of `grouped`, which may be one itself."""
    return task.get("files", [task])


def _surrogates(path: str) -> bool:
    """Whether the system's name of a file has bytes that are no UTF-8: neither Arrow nor JSON can say it."""
    return not path.isascii() and any("\ud800" <= char <= "\udfff" for char in path)


def identity(files: Sequence[File]) -> list[Any]:
    """What the files are, for a stage's fingerprint: a moved set is the same one."""
    return [[name, entry.size, entry.version] for name, entry in files]
