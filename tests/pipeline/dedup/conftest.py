"""A stage in this process: the interface that the engine gives to Corpus steps, with every hand-over through JSON."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import RunError
from pipeline.step import Corpus, Documents, Work


class LocalStage:
    """Runs phases one task after the other, in an order of its own, some of them twice (a retry)."""

    def __init__(self, folder: Path, partitions: list[dict[str, Any]], *, workers: int, memory: int, seed: int = 0):
        self.folder, self.partitions, self.workers, self.memory_bytes, self.seed = (
            folder,
            partitions,
            workers,
            memory,
            seed,
        )
        self.rows = sum(p["rows"] for p in partitions)
        self.batch_documents = 97
        self.phases: list[str] = []
        self.step: Corpus
        self.fingerprint = ""
        self.said: list[str] = []
        self.console = SimpleNamespace(line=self.said.append)
        self._fixed: dict[str, Any] = {}

    def map(self, phase: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.phases.append(phase)
        order = list(range(len(tasks)))
        random.Random(f"{self.seed}{phase}").shuffle(order)
        results: dict[int, dict[str, Any]] = {}
        for attempt, number in enumerate([*order, *order[:1]]):
            work = Work(
                str(self.folder / f"{len(self.phases)}-{phase}"),
                f"{self.folder.name}-{number}-{attempt}",
                self.memory_bytes,
                self.seed,
                self.batch_documents,
            )
            results[number] = json.loads(
                json.dumps(getattr(self.step, phase.partition("@")[0])(json.loads(json.dumps(tasks[number])), work))
            )
        return [results[i] for i in range(len(tasks))]

    def fix(self, name: str, value: Any) -> Any:
        return self._fixed.setdefault(name, value)


def run_step(
    step: Corpus,
    docs: pa.Table,
    folder: Path,
    *,
    partitions: int = 3,
    workers: int = 2,
    memory: int = 1 << 30,
    batch: int = 97,
    seed: int = 0,
) -> dict[str, Any]:
    """What the engine does with a Corpus step: kept, removed {doc_id: (reason, match, score)}, stage, decided."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Any]] = []
    for index in range(partitions):
        start, end = index * docs.num_rows // partitions, (index + 1) * docs.num_rows // partitions
        file = str(folder / f"part-{index}.parquet")
        pq.write_table(docs.slice(start, end - start), file)
        parts.append(
            {"index": index, "file": file, "rows": end - start, "bytes": docs.slice(start, end - start).nbytes}
        )
    stage = LocalStage(folder, parts, workers=workers, memory=memory, seed=seed)
    stage.step = step
    stage.fingerprint = hashlib.sha256(f"{step!r}{docs.to_pydict()}".encode()).hexdigest()
    stage.batch_documents = batch
    step.warm({})
    decided = json.loads(json.dumps(step.decide(stage)))  # type: ignore[arg-type]
    kept: list[pa.RecordBatch] = []
    removed: dict[bytes, tuple[str, bytes | None, float]] = {}
    for part in parts:
        decisions = step.decisions(decided, part["index"])
        first = 0
        for rows in pq.ParquetFile(part["file"]).iter_batches(batch):
            out, verdict = step.apply(Documents(rows), first, decisions)
            if out.num_rows != rows.num_rows:
                raise RunError("apply changed the number of rows")
            first += rows.num_rows
            if verdict is None:
                kept.append(out)
                continue
            stay = [reason is None for reason in verdict.reason]
            kept.append(out.filter(pa.array(stay)))
            for i, reason in enumerate(verdict.reason):
                if reason is not None:
                    match = None if verdict.match_id is None else verdict.match_id[i]
                    removed[rows.column("doc_id")[i].as_py()] = (reason, match, float(verdict.score[i]))
    table = pa.Table.from_batches(kept)
    assert table.num_rows + len(removed) == docs.num_rows
    return {"kept": table, "removed": removed, "stage": stage, "decided": decided}


def documents(texts: list[str], **columns: list[Any]) -> pa.Table:
    """DOCUMENT rows whose doc_id is the text's number; other columns by name."""
    from pipeline.schema import DOCUMENT

    n = len(texts)
    values: dict[str, Any] = {
        "doc_id": [i.to_bytes(16, "big") for i in range(n)],
        "source": ["web"] * n,
        "url": [f"http://example.org/{i}" for i in range(n)],
        "date": [0] * n,
        "title": [None] * n,
        "language": [None] * n,
        "text": texts,
    }
    values.update(columns)
    extra = [name for name in values if name not in DOCUMENT.names]
    table = pa.table([pa.array(values[f.name], f.type) for f in DOCUMENT], schema=DOCUMENT)
    for name in extra:
        table = table.append_column(name, pa.array(values[name]))
    return table


@pytest.fixture
def dedup(tmp_path: Path) -> Any:
    """dedup(step, docs, partitions=…, …) -> result of run_step in a fresh folder."""
    count = iter(range(10**6))
    return lambda step, docs, **options: run_step(step, docs, tmp_path / f"run{next(count)}", **options)


@pytest.fixture
def docs() -> Any:
    """docs(texts, date=[…]) -> DOCUMENT table."""
    return documents


@pytest.fixture
def local_stage() -> type[LocalStage]:
    """The stage class itself, for tests of single phases."""
    return LocalStage
