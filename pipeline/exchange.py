"""Brings rows with equal keys together, in bounded memory: the only place where data cross workers.

Map side: `Spread` cuts rows into buckets by key and writes one Arrow IPC file per task, one run of record
batches per flush, each sorted by the key columns. Reduce side: `collect` reads one bucket of all files;
`merge_sorted` streams it in key order with a memory limit, so that neither a large bucket nor a hot key has to
fit. Files, not the object store: a retry or a resumed run finds them where they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError


def buckets_for(total_bytes: int, memory_bytes: int, *, at_least: int = 1) -> int:
    """How many buckets keep one bucket, read and sorted, under the memory limit (factor 4: data, order, output)."""
    return max(at_least, -(-4 * total_bytes // max(1, memory_bytes)))


def bucket_of(keys: np.ndarray, buckets: int) -> np.ndarray:
    """Bucket number of 64-bit hash keys by their high bits (range partition: the buckets are ordered by key)."""
    high = (keys >> np.uint64(32)).astype(np.uint64)
    return ((high * np.uint64(buckets)) >> np.uint64(32)).astype(np.int64)


class Spread:
    """Writes the rows of one map task into buckets.

    with Spread(work.path("bands.arrow"), schema, buckets, sort_by=["key"], memory_bytes=…) as spread:
        spread.add(table, bucket)            # bucket: int array, one per row
    return {"bands": spread.index, …}        # JSON, to be given to `collect`

    The index is {"file", "rows", "runs": [[bucket, record batch number, rows, bytes], …]}.
    """

    def __init__(
        self, path: str, schema: pa.Schema, buckets: int, *, sort_by: Sequence[str] = (), memory_bytes: int = 1 << 28
    ):
        self.path, self.schema, self.buckets, self.sort_by = path, schema, buckets, list(sort_by)
        self.index: dict[str, Any] = {"file": path, "rows": 0, "runs": []}
        self._limit = max(1 << 20, memory_bytes // 8)  # a flush holds the rows, their sorted copy and its parts
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self._waiting_bytes = 0
        self.rows = 0  # that were added, written or not
        self._sink: Any = None
        self._writer: Any = None
        self._written = 0

    def __enter__(self) -> Spread:
        return self

    def add(self, table: pa.Table | pa.RecordBatch, bucket: np.ndarray) -> None:
        """Add rows; `bucket[i]` in [0, buckets) is where row i goes."""
        if table.num_rows == 0:
            return
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self._waiting.append((table.cast(self.schema), np.asarray(bucket, np.int64)))
        self._waiting_bytes += table.nbytes
        self.rows += table.num_rows
        if self._waiting_bytes > self._limit:
            self._flush()

    def add_run(self, table: pa.Table, bucket: int) -> None:
        """Write rows of one bucket, already sorted, as a run of their own; nothing is buffered."""
        if table.num_rows:
            self._write(table.cast(self.schema).combine_chunks(), bucket)

    def _write(self, rows: pa.Table, bucket: int) -> None:
        if self._writer is None:
            self._sink = storage.open_write(self.path)
            self._writer = pa.ipc.new_file(self._sink, self.schema)
        for batch in rows.to_batches():
            self._writer.write_batch(batch)
            self.index["runs"].append([bucket, self._written, batch.num_rows, int(batch.nbytes)])
            self._written += 1
        self.index["rows"] += rows.num_rows

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables([t for t, _ in self._waiting])
        bucket = np.concatenate([b for _, b in self._waiting])
        self._waiting, self._waiting_bytes = [], 0
        if len(self.sort_by) == 1:
            order = np.argsort(table.column(self.sort_by[0]).to_numpy())
        elif self.sort_by:
            order = pc.sort_indices(table, [(name, "ascending") for name in self.sort_by]).to_numpy()
        else:
            order = np.arange(table.num_rows)
        small = bucket.astype(np.uint16) if self.buckets <= 1 << 16 else bucket  # 16 bits are sorted by radix
        order = order[np.argsort(small[order], kind="stable")]
        table, bucket = table.take(pa.array(order)).combine_chunks(), bucket[order]
        starts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(bucket)], strict=True):
            self._write(table.slice(start, end - start), int(bucket[start]))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        else:
            self.index["file"] = None


def bucket_bytes(indices: Sequence[dict[str, Any]], bucket: int) -> int:
    """Bytes of one bucket over all map tasks' files."""
    return sum(size for index in indices for b, _, _, size in index["runs"] if b == bucket)


def filled(indices: Sequence[dict[str, Any]]) -> list[int]:
    """The buckets that hold any row, in order."""
    return sorted({b for index in indices for b, _, _, _ in index["runs"]})


def only(indices: Sequence[dict[str, Any]], bucket: int) -> list[dict[str, Any]]:
    """The indices cut down to one bucket: what a reduce task needs in its description."""
    cut = [{**index, "runs": [run for run in index["runs"] if run[0] == bucket]} for index in indices]
    return [index for index in cut if index["runs"]]


_PLACES = pa.schema(
    [("bucket", pa.int64()), ("file", pa.string()), *((name, pa.int64()) for name in ("batch", "rows", "bytes"))]
)


def save(folder: str, name: str, indices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Indices as one Parquet file in order of bucket, for results that every later task reads its bucket of.

    What is returned is small and goes where the indices would have gone; `load` gives one bucket's. The file's name
    and content depend on the indices alone, so a resumed run writes the same again.
    """
    rows = [(run[0], index["file"], *run[1:]) for index in indices for run in index["runs"]]
    order = sorted(range(len(rows)), key=lambda i: rows[i][0])
    columns = list(zip(*(rows[i] for i in order), strict=True)) if rows else [()] * 5
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _PLACES, strict=True)], schema=_PLACES)
    path = storage.join(str(folder), f"{name}.index.parquet")
    with storage.open_write(path) as sink:
        pq.write_table(table, sink, row_group_size=1 << 16)
    return {"index": path, "rows": sum(index["rows"] for index in indices)}


def load(saved: dict[str, Any], bucket: int) -> list[dict[str, Any]]:
    """The saved indices cut down to one bucket."""
    found: dict[str, list[list[int]]] = {}
    with storage.open_read(saved["index"]) as source:
        for row in pq.read_table(source, filters=[("bucket", "=", bucket)], use_threads=False).to_pylist():
            found.setdefault(row["file"], []).append([row[name] for name in ("bucket", "batch", "rows", "bytes")])
    return [{"file": file, "rows": sum(run[2] for run in runs), "runs": runs} for file, runs in found.items()]


def _runs(
    indices: Sequence[dict[str, Any]], bucket: int, columns: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    options = pa.ipc.IpcReadOptions(included_fields=list(columns) if columns is not None else None)
    for index in indices:
        runs = [run for run in index["runs"] if run[0] == bucket]
        if not runs:
            continue
        with storage.open_read(index["file"]) as source:
            reader = pa.ipc.open_file(source, options=options)
            for _, number, rows, _ in runs:
                batch = reader.get_batch(number)
                if batch.num_rows != rows:
                    raise DataError(f"{index['file']}: batch {number} has {batch.num_rows} rows, its index says {rows}")
                yield batch


def collect(
    indices: Sequence[dict[str, Any]], bucket: int, schema: pa.Schema, *, columns: Sequence[str] | None = None
) -> pa.Table:
    """All rows of one bucket, unordered. Fits in memory when the buckets were sized by `buckets_for`.

    With `columns` only those are read, in the order of the schema.
    """
    return pa.Table.from_batches(list(stream(indices, bucket, schema, columns=columns)), _part(schema, columns))


def stream(
    indices: Sequence[dict[str, Any]], bucket: int, schema: pa.Schema, *, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """One bucket batch by batch, in the same order at every call, one batch in memory."""
    numbers = None if columns is None else sorted(schema.get_field_index(name) for name in columns)
    return _runs(indices, bucket, numbers)


def _part(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([field for field in schema if field.name in columns])


def merge_sorted(
    indices: Sequence[dict[str, Any]], bucket: int, schema: pa.Schema, key: str, *, memory_bytes: int
) -> Iterator[pa.Table]:
    """One bucket in order of the integer column `key`, as tables of bounded size.

    A key's rows are in one table, unless the key alone exceeds the limit: then its tables follow each other, and
    the caller carries its state over (compare the first key of a table with the last of the one before). Runs must
    have been sorted by `key` first. Each pass reads only the slices it needs.
    """
    total = bucket_bytes(indices, bucket)
    if total * 3 <= memory_bytes:
        table = collect(indices, bucket, schema)
        if table.num_rows:
            yield table.take(pc.sort_indices(table, [(key, "ascending")]))
        return
    keys = [np.sort(batch.column(key).to_numpy()) for batch in _runs(indices, bucket)]
    everything = np.concatenate(keys)
    everything.sort()
    pieces = -(-total * 3 // memory_bytes)
    cuts = np.unique(everything[np.linspace(0, len(everything) - 1, pieces + 1).astype(np.int64)[1:-1]])
    limit = max(1, memory_bytes // 3 // max(1, total // len(everything)))
    del everything, keys
    edges = [None, *cuts.tolist(), None]
    for low, high in itertools.pairwise(edges):
        parts: list[pa.RecordBatch] = []
        for batch in _runs(indices, bucket):
            values = batch.column(key).to_numpy()
            start = 0 if low is None else int(np.searchsorted(values, low, "left"))
            end = len(values) if high is None else int(np.searchsorted(values, high, "left"))
            if end > start:
                # a copy, so that a small slice does not keep its whole batch alive
                parts.append(batch.slice(start, end - start).take(pa.array(np.arange(end - start))))
        if not parts:
            continue
        table = pa.Table.from_batches(parts, schema)
        table = table.take(pc.sort_indices(table, [(key, "ascending")]))
        for start in range(0, table.num_rows, max(limit, 1)) if _one_key(table, key) else [0]:
            yield table.slice(start, limit) if _one_key(table, key) else table


def _one_key(table: pa.Table, key: str) -> bool:
    column = table.column(key)
    return table.num_rows > 0 and column[0] == column[-1]
