"""Parquet shards: how rows lie on the storage between stages. Reading and writing are bounded by row groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError

ROW_GROUP_BYTES = 64 << 20
"""Of a row group, before compression, where memory allows it."""


class ShardWriter:
    """Writes record batches of one schema into one Parquet file, in row groups of about 64 MB.

    A row group is in memory while it is written and while it is read, so it has a sixteenth of `memory_bytes` at most,
    but 1 MB. The file is complete only when its name is committed by the manifest; until then nobody reads it.
    """

    def __init__(self, path: str, schema: pa.Schema | None = None, *, memory_bytes: int = 1 << 31):
        self.path = path
        self._group_bytes = min(ROW_GROUP_BYTES, max(1 << 20, memory_bytes // 16))
        self.rows = 0
        self.bytes = 0
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._sink: Any = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. All batches must have the same schema."""
        if batch.num_rows == 0:
            return
        if self._schema is None:
            self._schema = batch.schema
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
        if self._waiting_bytes >= self._group_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        assert self._schema is not None
        table = pa.Table.from_batches(self._waiting, self._schema)
        if self._writer is None:
            self._sink = storage.open_write(self.path)
            few_values = [f.name for f in self._schema if f.name in ("source", "language", "step", "reason", "status")]
            self._writer = pq.ParquetWriter(
                self._sink, self._schema, compression="zstd", compression_level=1, use_dictionary=few_values
            )
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting, self._waiting_bytes = [], 0

    def close(self) -> str | None:
        """Finish the file; its path, or None when there was no row (then there is no file)."""
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        self._sink.close()
        return self.path


def read(
    partition: dict[str, Any], *, columns: Sequence[str] | None = None, batch_documents: int = 1000
) -> Iterator[pa.RecordBatch]:
    """The rows of a partition {"file": path or None, "rows": n} in order, in batches; one row group in memory.

    Raises DataError when the file holds another number of rows than the manifest says.
    """
    if partition.get("file") is None:
        return
    seen = 0
    with storage.open_read(partition["file"]) as source:
        file = pq.ParquetFile(source, pre_buffer=storage.is_s3(partition["file"]))
        names = list(columns) if columns else None
        for group in range(file.num_row_groups):  # one after the other: what is read ahead is kept until the end
            for batch in file.iter_batches(batch_documents, row_groups=[group], columns=names, use_threads=False):
                seen += batch.num_rows
                yield batch
    if seen != partition["rows"]:
        raise DataError(f"{partition['file']}: {seen} rows, but its manifest entry says {partition['rows']}")


def content_hash(paths: Sequence[str]) -> str:
    """Digest of the rows in Parquet files, whatever their order and however they are cut into files and groups.

    Two runs gave the same output exactly when these are equal.
    """
    digests: list[bytes] = []
    for path in paths:
        with storage.open_read(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(1000):
                names = batch.schema.names
                for row in batch.to_pylist():
                    text = repr([(name, row[name]) for name in names]).encode("utf-8", "surrogatepass")
                    digests.append(hashlib.blake2b(text, digest_size=16).digest())
    digests.sort()
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
