"""A source for benchmarks: DOCUMENT Parquet files as they are, so that only what is measured is measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipeline.schema import Row
from pipeline.step import Source, Verdict


class ParquetSource(Source):
    """The rows of all Parquet files of a folder."""

    gives: ClassVar[Row] = Row.DOCUMENT
    path: str

    def tasks(self, stage: Any) -> list[dict[str, Any]]:
        return [{"path": entry.path, "bytes": entry.size} for entry in storage.list_files(self.path)]

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        for batch in pq.ParquetFile(task["path"], pre_buffer=False).iter_batches(1000):
            yield batch, None
