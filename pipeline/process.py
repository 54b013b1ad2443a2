"""The fused per-document steps: batches in, surviving rows out, every other row in the ledger.

A step that raises on a batch is tried on its halves, down to the one document that it cannot take; that document
fails (quarantined with its bytes and the error) and the rest go on. Where a batch costs a process (see
pipeline.careful), its documents are tried one by one: a second process, or a second wait, and no more.
Steps are pure, so trying again is safe.
"""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import CorpusmillError, RunError
from pipeline.ledger import Ledger
from pipeline.step import Documents, Filter, Step, Transform, Verdict

Applied = tuple[pa.RecordBatch, Verdict, dict[str, np.ndarray]]
"""(rows after the step, what goes, scores), all of the batch's length."""

Call = Callable[[Step, Documents], Applied]


class BrokenStep(RunError):
    """A step broke its contract (wrong number of rows): a defect of the step, not of a document."""


class ChildDied(Exception):
    """The process that had a batch ended, or was ended."""


def apply_step(step: Step, docs: Documents) -> Applied:
    """One Transform or Filter on one batch. Raises BrokenStep when what it gives has the wrong length."""
    scores: dict[str, np.ndarray] = {}
    if isinstance(step, Filter):
        scores = step.scores(docs)
        verdict: Verdict | None = step.verdict(docs, scores)
        rows = docs.batch
        for name, column in step.columns(docs).items():
            rows = _with_column(rows, name, column)
    elif isinstance(step, Transform):
        rows, verdict = step.transform(docs)
    else:
        raise BrokenStep(f"{step.step_name()} is neither a Transform nor a Filter")
    verdict = verdict or Verdict.keep(len(docs))
    check_lengths(step, len(docs), rows, verdict, scores)
    return rows, verdict, scores


def check_lengths(step: Step, n: int, rows: pa.RecordBatch, verdict: Verdict, scores: dict[str, np.ndarray]) -> None:
    """Raise BrokenStep unless everything a step gave has the batch's length."""
    found = {"rows": rows.num_rows, "reasons": len(verdict.reason), **{f"score {k}": len(v) for k, v in scores.items()}}
    wrong = {what: length for what, length in found.items() if length != n}
    if wrong:
        raise BrokenStep(f"{step.step_name()} was given {n} rows and gave back {wrong}")


def _with_column(rows: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    if name in rows.schema.names:
        index = rows.schema.get_field_index(name)
        return rows.set_column(index, rows.schema.field(index), column.cast(rows.schema.field(index).type))
    return rows.append_column(name, column)


def guarded(step: Step, docs: Documents, call: Call) -> tuple[pa.RecordBatch | None, Verdict, dict[str, np.ndarray]]:
    """`call` with poison documents kept apart.

    Returns the rows after the step for the documents that did not fail (None if all failed), and verdict and scores
    for all. Errors addressed to the user (CorpusmillError) pass through: they are not a document's fault.
    """
    try:
        rows, verdict, scores = call(step, docs)
    except CorpusmillError:
        raise
    except Exception as error:
        size = 1 if isinstance(error, ChildDied) else (len(docs) + 1) // 2
        if len(docs) == 1:
            verdict = Verdict.keep(1)
            verdict.fail(0, _describe(error), reason=type(error).__name__)
            return None, verdict, {}
    else:
        ok = _not_failed(verdict)  # a step may fail documents itself, and gives a row for these too
        return (rows if ok.all() else rows.filter(pa.array(ok)) if ok.any() else None), verdict, scores
    parts = [Documents(rows) for rows in batches_of(docs.batch, size)]
    return _joined([(len(part), *guarded(step, part, call)) for part in parts])


def _describe(error: Exception) -> str:
    """The error and the innermost frames that explain it, without the engine's own."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.endswith("process.py")]
    where = "; ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames[-3:])
    return f"{type(error).__name__}: {error}"[:2000] + (f" [{where}]" if where else "")


def _joined(
    parts: list[tuple[int, pa.RecordBatch | None, Verdict, dict[str, np.ndarray]]],
) -> tuple[pa.RecordBatch | None, Verdict, dict[str, np.ndarray]]:
    rows = [part_rows for _, part_rows, _, _ in parts if part_rows is not None]
    verdict = Verdict(
        reason=np.concatenate([v.reason for _, _, v, _ in parts]),
        score=np.concatenate([v.score for _, _, v, _ in parts]),
        threshold=np.concatenate([v.threshold for _, _, v, _ in parts]),
        match_id=_concat_optional([(n, v.match_id) for n, _, v, _ in parts]),
        error=_concat_optional([(n, v.error) for n, _, v, _ in parts]),
    )
    names = {name for _, _, _, scores in parts for name in scores}
    scores = {name: np.concatenate([s.get(name, np.full(n, np.nan)) for n, _, _, s in parts]) for name in sorted(names)}
    return (pa.concat_batches(rows) if rows else None), verdict, scores


def _concat_optional(parts: list[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    if all(values is None for _, values in parts):
        return None
    return np.concatenate([np.full(n, None, object) if values is None else values for n, values in parts])


@dataclass
class StepCount:
    """What went through one step in one task."""

    documents_in: int = 0
    seconds: float = 0.0


@dataclass
class Chain:
    """Fused steps with their ledger: `push` takes a batch through all of them."""

    steps: tuple[Step, ...]
    ledger: Ledger
    call: Call = apply_step
    keep_scores: bool = False
    counts: dict[str, StepCount] = field(default_factory=dict)
    scores: list[tuple[int, pa.RecordBatch]] = field(default_factory=list)
    """With keep_scores: (number of the first filter of a group, its scores) for the caller to write and clear."""

    def push(self, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        """The rows of `batch` that are left after all steps, in order; None when none is."""
        rows: pa.RecordBatch | None = batch
        number = 0
        while number < len(self.steps):
            if rows is None or rows.num_rows == 0:
                return None
            filters = list(itertools.takewhile(lambda step: isinstance(step, Filter), self.steps[number:]))
            rows = self._filter(number, filters, rows) if filters else self._transform(number, rows)
            number += len(filters) or 1
        return rows if rows is not None and rows.num_rows else None

    def _transform(self, number: int, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        docs = Documents(batch)
        rows, _, stays, _ = self._step(number, docs, np.ones(len(docs), bool))
        return rows if rows is None or stays.all() else rows.filter(pa.array(stays))

    def _filter(self, number: int, filters: list[Step], batch: pa.RecordBatch) -> pa.RecordBatch | None:
        """Consecutive filters share the analysis of the batch, so rows that are gone are carried along: a copy without
        them costs more, until they are the majority."""
        docs, alive = Documents(batch), np.ones(batch.num_rows, bool)
        all_scores: dict[str, np.ndarray] = {}
        for offset, prefix in enumerate(prefixes(filters)):
            if not self.keep_scores and alive.sum() * 2 < len(alive):
                docs, alive = Documents(docs.batch.filter(pa.array(alive))), np.ones(int(alive.sum()), bool)
            if len(docs) == 0:
                return None
            rows, ok, alive, scores = self._step(number + offset, docs, alive)
            if rows is None:
                return None
            all_scores = {name: values[ok] for name, values in all_scores.items()} if not ok.all() else all_scores
            all_scores |= {prefix + name: values[ok] for name, values in scores.items()}
            changed = Documents(rows)
            if ok.all() and _same_text(docs.batch, rows):
                changed._computed = docs._computed
            docs = changed
        if self.keep_scores:
            names = [n for n in ("doc_id", "source", "language") if n in docs.batch.schema.names]
            values = [pa.array(v, from_pandas=True).cast(pa.float64()) for v in all_scores.values()]
            columns = [*(docs.column(n) for n in names), pa.array(alive), *values]
            table = pa.RecordBatch.from_arrays(columns, names=[*names, "kept", *all_scores])
            self.scores.append((number, table))
        return docs.batch if alive.all() else docs.batch.filter(pa.array(alive))

    def _step(
        self, number: int, docs: Documents, alive: np.ndarray
    ) -> tuple[pa.RecordBatch | None, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One step on the batch, what it removes in the ledger.

        (rows of the documents that did not fail, which those are, which of them are still alive, scores of all)
        """
        step = self.steps[number]
        count = self.counts.setdefault(f"{number}:{step.step_name()}", StepCount())
        count.documents_in += int(alive.sum())
        started = time.perf_counter()
        rows, verdict, scores = guarded(step, docs, self.call)
        count.seconds += time.perf_counter() - started
        goes = alive & np.array([reason is not None for reason in verdict.reason], bool)
        self.ledger.record(step.step_name(), docs.batch, verdict, goes)
        ok = _not_failed(verdict)
        return rows, ok, (alive & ~goes)[ok], scores


def prefixes(filters: Sequence[Step]) -> list[str]:
    """What stands before the names of each one's stored scores: "filters.c4.", for a second one "filters.c4#2."."""
    names = [step.step_name() for step in filters]
    return [f"{name}#{n}." if (n := names[: i + 1].count(name)) > 1 else f"{name}." for i, name in enumerate(names)]


def _same_text(before: pa.RecordBatch, after: pa.RecordBatch) -> bool:
    """Whether the text column is the very same memory: some filters take lines out of it."""
    if "text" not in before.schema.names or "text" not in after.schema.names:
        return False
    left, right = before.column("text"), after.column("text")
    places = [[b.address if b is not None else 0 for b in column.buffers()] for column in (left, right)]
    return left.offset == right.offset and places[0] == places[1]


def _not_failed(verdict: Verdict) -> np.ndarray:
    if verdict.error is None:
        return np.ones(len(verdict.reason), bool)
    return np.array([error is None for error in verdict.error], bool)


def batches_of(rows: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """Slices of at most `size` rows."""
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)


def totals(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Task results added up: documents in, kept, removed {step: {reason: n}}, failed {step: n}, per-step counts."""
    sums: dict[str, Any] = {"in": 0, "rows": 0, "ledger_rows": 0, "removed": {}, "failed": {}, "steps": {}}
    for part in parts:
        for name in ("in", "rows", "ledger_rows"):
            sums[name] += part.get(name, 0)
        for step, reasons in part.get("removed", {}).items():
            mine = sums["removed"].setdefault(step, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
        for step, count in part.get("failed", {}).items():
            sums["failed"][step] = sums["failed"].get(step, 0) + count
        for step, (documents, seconds) in part.get("steps", {}).items():
            before = sums["steps"].get(step, (0, 0.0))
            sums["steps"][step] = (before[0] + documents, before[1] + seconds)
    return sums
