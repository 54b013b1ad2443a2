"""Two runs side by side: settings that differ, what each step kept, and the documents that only one of them kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from pipeline.why import why

_EXAMPLES = 3


def compare(first: str, second: str) -> Iterator[str]:
    """Lines that tell what the second run does otherwise than the first. Needs 100 bytes of memory per document.

    Raises DataError where there is no finished run.
    """
    runs = [storage.absolute(run) for run in (first, second)]
    records = [_record(run) for run in runs]
    recipes = [_recipe(run) for run in runs]
    for name in _union(*recipes):
        old, new = (recipe.get(name) for recipe in recipes)
        if old is None or new is None:
            yield f"{name}: only in the {'second' if old is None else 'first'} run"
            continue
        for field in _union(old, new):
            if old.get(field) != new.get(field):
                yield f"{name}.{field}: {old.get(field)} → {new.get(field)}"
    yield f"\n{'step':<30} {'kept':>12} {'kept':>12} {'change':>10}  removed for"
    for name in _union(*records):
        (before, gone), (after, goes) = (record.get(name, (None, {})) for record in records)
        change = f"{after - before:+,}" if before is not None and after is not None else ""
        counts = " ".join(f"{'' if kept is None else format(kept, ','):>12}" for kept in (before, after))
        told = [
            f"{reason} {gone.get(reason, 0):,} → {goes.get(reason, 0):,}"
            for reason in _union(gone, goes)
            if gone.get(reason) != goes.get(reason)
        ]
        yield f"{name:<30} {counts} {change:>10}  {', '.join(told)}".rstrip()
    ids = [_documents(run) for run in runs]
    for mine, other, which in ((0, 1, "first"), (1, 0, "second")):
        only = sorted(ids[mine] - ids[other])
        yield f"\nkept by the {which} run only: {len(only):,}"
        for doc_id in only[:_EXAMPLES]:
            lines, found = why(runs[other], doc_id.hex())
            yield from lines if found else [f"{doc_id.hex()}: never came into the other run"]


def _record(run: str) -> dict[str, tuple[int, dict[str, int]]]:
    """{step, numbered where it occurs again: (documents kept, {reason: removed})} of a finished run."""
    path = storage.join(run, "run.json")
    if not storage.exists(path):
        raise DataError(f"{run}: no run.json there; give the folder that `corpusmill run --out` made")
    record = json.loads(storage.read_bytes(path))
    if record["status"] != "done":
        raise DataError(f"{run}: this run is {record['status']}, not done; the same `corpusmill run` goes on with it")
    steps = [step for stage in record["stages"] for step in stage["steps"]]
    kept = [(step["in"] - sum(step["removed"].values()) - step["failed"], step["removed"]) for step in steps]
    return dict(zip(_numbered([step["name"] for step in steps]), kept, strict=True))


def _recipe(run: str) -> dict[str, dict[str, Any]]:
    import yaml

    raw = yaml.safe_load(storage.read_bytes(storage.join(run, "recipe.yaml")))
    names = _numbered([next(iter(step)) for step in raw["steps"]])
    return {
        "recipe": {"seed": raw["seed"]},
        **{n: next(iter(s.values())) for n, s in zip(names, raw["steps"], strict=True)},
    }


def _numbered(names: list[str]) -> list[str]:
    """The names, those that occur again as `name#2`, as `--set` writes them."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return numbered


def _union(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return list({**first, **second})


def _documents(run: str) -> set[bytes]:
    found: set[bytes] = set()
    for item in storage.list_files(storage.join(run, "documents")):
        with storage.open_read(item.path) as source:
            for batch in pq.ParquetFile(source).iter_batches(columns=["doc_id"]):
                found.update(batch.column(0).to_pylist())
    return found
