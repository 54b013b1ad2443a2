"""What a worker does with one task, and the worker as a Ray actor: one process per core, warm for a whole stage."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import manifest, shards
from pipeline.ledger import Ledger
from pipeline.process import Chain, apply_step, batches_of, check_lengths
from pipeline.step import Corpus, Documents, Source, Step, Verdict, Work

OUTPUT = "output"
"""The phase that writes a stage's rows; no step may have a phase of this name."""


@dataclass(frozen=True)
class Job:
    """One phase of one stage: what all its tasks have in common. Small, and pickled once per worker."""

    folder: str
    """Where the phase's files and manifest entries lie."""

    phase: str
    """Name of the step's method to call with (task, work); OUTPUT runs the fused per-document steps."""

    entry: Step | None
    steps: tuple[Step, ...] = ()
    decided: dict[str, Any] | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    memory_bytes: int = 1 << 31
    seed: int = 0
    batch_documents: int = 1000
    keep_scores: bool = False
    document_timeout_s: float = 60.0


class Progress:
    """Rows done by this worker and when the last ones were; read by the heartbeat's thread."""

    def __init__(self) -> None:
        self.rows = 0
        self.task = -1
        self.at = time.monotonic()

    def begin(self, task: int) -> None:
        self.task, self.at = task, time.monotonic()

    def add(self, rows: int) -> None:
        self.rows += rows
        self.at = time.monotonic()


def warm(job: Job) -> None:
    """Load what the job's steps need, before the first task. One thread: there is a worker per core."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(2)
    for step in ((job.entry,) if job.entry else ()) + job.steps:
        step.warm(job.artifacts)


def perform(
    job: Job, number: int, task: dict[str, Any], progress: Progress, *, careful: bool = False
) -> dict[str, Any]:
    """Do one task and commit {"result", "seconds", "peak_memory"}; what counts (an earlier try's, if it was first)."""
    started = time.perf_counter()
    progress.begin(number)
    attempt = f"{number:06d}-{os.urandom(4).hex()}"
    work = Work(
        folder=job.folder, attempt=attempt, memory_bytes=job.memory_bytes, seed=job.seed,
        batch_documents=job.batch_documents, artifacts=job.artifacts, progress=progress.add,
    )  # fmt: skip
    if job.phase == OUTPUT:
        result = _rows(job, task, work, careful)
    else:
        result = getattr(job.entry, job.phase.partition("@")[0])(task, work)
    done = {
        "result": result,
        "seconds": round(time.perf_counter() - started, 4),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return manifest.commit(job.folder, number, done)


def _rows(job: Job, task: dict[str, Any], work: Work, careful: bool) -> dict[str, Any]:
    """Read a partition, put it through the fused steps, write what is left."""
    ledger = Ledger(work.path)
    writer = shards.ShardWriter(work.path("rows.parquet"), memory_bytes=work.memory_bytes)
    scores: dict[int, shards.ShardWriter] = {}
    documents_in = 0
    with _caller(job, work, careful) as call:
        chain = Chain(job.steps, ledger, call, job.keep_scores)
        for batch, count in _entering(job, task, ledger, careful):
            documents_in += count
            kept = chain.push(batch) if batch is not None else None
            if kept is not None:
                writer.write(kept)
            for number, table in chain.scores:
                scores.setdefault(number, shards.ShardWriter(work.path(f"scores-{number}.parquet"))).write(table)
            chain.scores.clear()
            work.progress(count)
    return {
        "in": documents_in,
        "file": writer.close(),
        "rows": writer.rows,
        "bytes": writer.bytes,
        "scores": {str(number): writer.close() for number, writer in scores.items()},
        "steps": {name: [count.documents_in, round(count.seconds, 4)] for name, count in chain.counts.items()},
        **ledger.close(),
    }


class _Plain:
    """Calls steps in this process."""

    def __enter__(self) -> Any:
        return apply_step

    def __exit__(self, *_: object) -> None:
        pass


def _caller(job: Job, work: Work, careful: bool) -> Any:
    if not careful:
        return _Plain()
    from pipeline.careful import Child

    return Child(job, work.progress)


def _entering(
    job: Job, task: dict[str, Any], ledger: Ledger, careful: bool
) -> Iterator[tuple[pa.RecordBatch | None, int]]:
    """(rows that the stage's entry lets in, how many there were) batch by batch."""
    entry = job.entry
    size = 32 if careful else job.batch_documents
    if isinstance(entry, Source):
        for rows, verdict in entry.read(task):
            entered = _settle(entry, rows, verdict, ledger)
            parts = list(batches_of(entered, size)) if entered is not None else []
            yield (parts[0] if parts else None), rows.num_rows
            for part in parts[1:]:
                yield part, 0
        return
    decisions = (
        entry.decisions(job.decided or {}, task["index"]) if isinstance(entry, Corpus) and entry.changes_rows else None
    )
    first_row = 0
    for rows in shards.read(task, batch_documents=size):
        count = rows.num_rows
        kept = rows
        if isinstance(entry, Corpus) and entry.changes_rows:
            changed, verdict = entry.apply(Documents(rows), first_row, decisions)
            verdict = verdict or Verdict.keep(count)
            check_lengths(entry, count, changed, verdict, {})
            kept = _settle(entry, rows, verdict, ledger, changed)
        first_row += count
        yield kept, count


def _settle(
    step: Step, rows: pa.RecordBatch, verdict: Verdict | None, ledger: Ledger, changed: pa.RecordBatch | None = None
) -> pa.RecordBatch | None:
    """Enter in the ledger what the entry step removes; the rows that stay, or None."""
    after = rows if changed is None else changed
    if verdict is None:
        return after
    goes = np.array([reason is not None for reason in verdict.reason], bool)
    ledger.record(step.step_name(), rows, verdict, goes)
    if not goes.any():
        return after
    return None if goes.all() else after.filter(pa.array(~goes))


class PipelineWorker:
    """The body of the Ray actor. `run` and `prepare` take turns on one thread, `beat` answers on another."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._job: Job | None = None

    def prepare(self, job: Job) -> int:
        """Take over a job: load its models, compile its kernels. The process id."""
        self._job = job
        self._progress.add(0)
        warm(job)
        self._progress.add(0)
        return os.getpid()

    def run(self, number: int, task: dict[str, Any], careful: bool) -> dict[str, Any]:
        """One task of the job that was prepared."""
        assert self._job is not None
        return perform(self._job, number, task, self._progress, careful=careful)

    def beat(self) -> tuple[int, int, float]:
        """(task in work, rows done since the start, seconds since the last sign of progress)."""
        return self._progress.task, self._progress.rows, time.monotonic() - self._progress.at
