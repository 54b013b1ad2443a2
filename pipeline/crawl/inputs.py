"""The files that a reader was given: found, named, checked. Their names below the root become identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster import storage
from cluster.errors import RecipeError

File = tuple[str, storage.Entry]
"""(name below the root of its pattern, the file)"""


def find(
    path: str | Sequence[str], look: Callable[[str], list[File]] = storage.find, *, at_most: int | None = None
) -> list[File]:
    """All files of one or several patterns, in order of their names, the first `at_most`."""
    patterns = (path,) if isinstance(path, str) else path
    return sorted((file for pattern in patterns for file in look(pattern)), key=lambda file: file[0])[:at_most]


def check(step: str, path: str | Sequence[str], files: Sequence[File]) -> None:
    """Refuse a reader without a file, or with two of one name. Raises RecipeError."""
    if not files:
        raise RecipeError(f"{step}: no file at {path!r}; give a file, a folder or a glob")
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


def _surrogates(path: str) -> bool:
    """Whether the system's name of a file has bytes that are no UTF-8: neither Arrow nor JSON can say it."""
    return not path.isascii() and any("\ud800" <= char <= "\udfff" for char in path)


def identity(files: Sequence[File]) -> list[Any]:
    """What the files are, for a stage's fingerprint: a moved set is the same one."""
    return [[name, entry.size, entry.version] for name, entry in files]
