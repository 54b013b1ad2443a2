"""Which tasks of a phase are done. An entry is created exactly once, and names every file that belongs to it.

A task writes its files under names that no other try uses, then publishes one entry: a hard link locally, a
conditional put on S3. The first try to publish wins; what a lost or interrupted try wrote is never read.

Files below the run's folder are named relative to it, so that a run can be moved or copied, and goes on there.
"""

from __future__ import annotations

import json
from typing import Any

from cluster import storage
from cluster.errors import DataError

_ROOT = "{root}"


def dump(value: Any, root: str, **how: Any) -> bytes:
    """JSON in which the paths below `root`, a folder, are relative to it."""
    return json.dumps(value, **how).replace(f'"{_escaped(root)}/', f'"{_ROOT}/').encode()


def load(data: bytes, root: str) -> Any:
    """What `dump` was given, with the paths below `root` as they are now."""
    return json.loads(data.decode().replace(f'"{_ROOT}/', f'"{_escaped(root)}/'))


def _escaped(root: str) -> str:
    return json.dumps(root)[1:-1]


def _run_of(path: str) -> str:
    """The run's folder above a stage's file."""
    return path.rpartition("/stages/")[0]


def _entry_path(folder: str, task: int) -> str:
    return storage.join(folder, "done", f"{task:06d}.json")


def commit(folder: str, task: int, result: dict[str, Any]) -> dict[str, Any]:
    """Publish a task's result; the result that counts, which is an earlier try's if that one was first."""
    path = _entry_path(folder, task)
    if storage.put_if_absent(path, dump(result, _run_of(path))):
        return result
    return _read(path)


def done(folder: str) -> dict[int, dict[str, Any]]:
    """All committed results of a phase by task number."""
    complete = storage.join(folder, "all.json")
    if storage.exists(complete):
        return dict(enumerate(_read(complete)["results"]))
    found = {}
    for item in storage.list_files(storage.join(folder, "done")):
        if item.path.endswith(".json"):
            found[int(item.path.rpartition("/")[2][:-5])] = _read(item.path)
    return found


def finish(folder: str, results: list[dict[str, Any]]) -> None:
    """Write all results of a finished phase as one object, so that a later run reads one instead of thousands."""
    storage.write_bytes(storage.join(folder, "all.json"), dump({"results": results}, _run_of(folder)))


def once(path: str, value: Any) -> Any:
    """The value that was first published under `path`; now, if it is absent."""
    if storage.put_if_absent(path, dump({"value": value}, _run_of(path))):
        return value
    return _read(path)["value"]


def _read(path: str) -> Any:
    try:
        return load(storage.read_bytes(path), _run_of(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete the stage's folder to make it again") from None
