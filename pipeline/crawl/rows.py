"""Collects RECORD or DOCUMENT rows into record batches bounded by rows and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.step import Verdict

BATCH_ROWS = 1000
BATCH_BYTES = 8 << 20


class Rows:
    """Rows of one schema; `full` batches are taken off as they fill up."""

    def __init__(self, schema: pa.Schema, source: str, *, rows: int = BATCH_ROWS, size: int = BATCH_BYTES):
        self.schema, self.source, self._max_rows, self._max_bytes = schema, source, rows, size
        self._clear()

    def _clear(self) -> None:
        self._bytes_of = {f.name: _Bytes(self._max_bytes) for f in self.schema if pa.types.is_large_binary(f.type)}
        self._columns: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in self._bytes_of}
        self._verdicts: list[tuple[int, str, str | None]] = []
        self._count = self._bytes = 0

    def add(self, row: dict[str, Any], *, reason: str | None = None, error: str | None = None) -> None:
        """Add a row; `reason` removes it, `error` fails it (under the reason "error" unless one is given)."""
        if reason is not None or error is not None:
            self._verdicts.append((self._count, reason or "error", error))
        self._count += 1
        row.setdefault("source", self.source)
        get, size = row.get, 64
        for name, values in self._columns.items():
            value = get(name)
            values.append(value)
            if value.__class__ is str:
                size += len(value)
        for name, store in self._bytes_of.items():
            size += store.add(get(name))
        self._bytes += size

    def full(self) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        """The batch, if it has reached its bounds."""
        if self._count >= self._max_rows or self._bytes >= self._max_bytes:
            yield from self.rest()

    def rest(self) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        """What is left, if anything."""
        if not self._count:
            return
        arrays = [
            self._bytes_of[field.name].array()
            if field.name in self._bytes_of
            else pa.array(self._columns[field.name], field.type)
            for field in self.schema
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        verdict = None
        if self._verdicts:
            verdict = Verdict.keep(self._count)
            for row, reason, error in self._verdicts:
                verdict.reason[row] = reason
                if error is not None:
                    verdict.fail(row, error, reason)
        self._clear()
        yield batch, verdict


class _Bytes:
    """A column of bytes, each value copied once, while it is warm, into memory of Arrow's pool.

    The pool gives the next batch the pages of the last one; fresh ones cost as much as the copy.
    """

    def __init__(self, size: int):
        self._buffer = pa.allocate_buffer(size + size // 4)
        self._view = memoryview(self._buffer).cast("B")
        self._ends, self._missing = [0], list[int]()

    def add(self, value: bytes | memoryview | None) -> int:
        """Add a value; its length."""
        at = self._ends[-1]
        if value is None:
            self._missing.append(len(self._ends) - 1)
            self._ends.append(at)
            return 0
        end = at + len(value)
        if end > len(self._view):
            larger = pa.allocate_buffer(end + end // 2)
            view = memoryview(larger).cast("B")
            view[:at] = self._view[:at]
            self._buffer, self._view = larger, view
        self._view[at:end] = value
        self._ends.append(end)
        return end - at

    def array(self) -> pa.Array:
        rows, size = len(self._ends) - 1, self._ends[-1]
        # a batch that is full by its rows keeps no more memory than it has bytes
        small = size < len(self._view) // 2
        data = pa.py_buffer(bytes(self._view[:size])) if small else self._buffer.slice(0, size)
        bits = None
        if self._missing:
            valid = np.ones(rows, bool)
            valid[self._missing] = False
            bits = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
        offsets = pa.py_buffer(np.array(self._ends, np.int64).tobytes())
        return pa.Array.from_buffers(pa.large_binary(), rows, [bits, offsets, data], null_count=len(self._missing))


def timestamp(text: str | None) -> datetime | None:
    """A W3C or ISO 8601 date as UTC, whole seconds; None when it is absent or not a date of the years 1 to 9999."""
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text.strip())
        if date.tzinfo is UTC and not date.microsecond:
            return date
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        return None
