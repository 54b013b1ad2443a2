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
        # of binary columns the bytes and where each value ends: a value is copied once, while it is warm
        self._bytes_of: dict[str, tuple[bytearray, list[int], list[bool]]] = {
            f.name: (bytearray(), [0], []) for f in self.schema if pa.types.is_large_binary(f.type)
        }
        self._columns: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in self._bytes_of}
        self._verdicts: list[tuple[int, str, str | None]] = []
        self._count = self._bytes = 0

    def add(self, row: dict[str, Any], *, reason: str | None = None, error: str | None = None) -> None:
        """Add a row; `reason` removes it, `error` fails it (under the reason "error" unless one is given)."""
        if reason is not None or error is not None:
            self._verdicts.append((self._count, reason or "error", error))
        self._count += 1
        row.setdefault("source", self.source)
        size = 64
        for name, values in self._columns.items():
            value = row.get(name)
            values.append(value)
            if value.__class__ is str:
                size += len(value)
        for name, (data, ends, valid) in self._bytes_of.items():
            value = row.get(name)
            valid.append(value is not None)
            if value is not None:
                data += value
                size += len(value)
            ends.append(len(data))
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
            _binary(*self._bytes_of[field.name])
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


def _binary(data: bytearray, ends: list[int], valid: list[bool]) -> pa.Array:
    nulls = len(valid) - sum(valid)
    bits = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes()) if nulls else None
    offsets = pa.py_buffer(np.array(ends, np.int64).tobytes())
    return pa.Array.from_buffers(pa.large_binary(), len(valid), [bits, offsets, pa.py_buffer(data)], null_count=nulls)


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
