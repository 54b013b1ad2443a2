"""Rows of Parquet files that others wrote: odd types read as what they mean, damage as failed rows that say where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cluster import storage

_ROWS = 1024
_STORAGE = re.compile("AWS|S3|HTTP|connection|timeout|timed out", re.I)
"""Words of Arrow's errors about storage, which like those about damage carry no error number."""

_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)


def columns(path: str) -> list[str] | None:
    """Names of the columns; None for a file that is no whole Parquet file."""
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        try:
            return list(pq.ParquetFile(stream).schema_arrow.names)
        except _UNREADABLE as error:
            _raise_if_storage(error)
            return None


def pieces(path: str, split_bytes: int) -> list[dict[str, Any]]:
    """Tasks of about `split_bytes`: groups of rows, and the number of the first row in the file.

    One task without groups for a file that is no whole Parquet file: reading it gives the failed row.
    """
    import pyarrow.parquet as pq

    with storage.open_read(path) as stream:
        try:
            meta = pq.ParquetFile(stream).metadata
        except _UNREADABLE as error:
            _raise_if_storage(error)
            return [{"groups": [], "first_row": 0}]
        sizes = [(meta.row_group(i).total_byte_size, meta.row_group(i).num_rows) for i in range(meta.num_row_groups)]
    found: list[dict[str, Any]] = []
    first_row = 0
    for group, (size, rows) in enumerate(sizes):
        if found and found[-1]["bytes"] + size <= split_bytes:
            found[-1]["groups"].append(group)
            found[-1]["bytes"] += size
        else:
            found.append({"groups": [group], "first_row": first_row, "bytes": size})
        first_row += rows
    return found


def rows_of(task: dict[str, Any], wanted: set[str] | None) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
    """(row number, values by column of `wanted` (None: all), None), or (row number, b"", what is lost from there on).

    A row group that cannot be read costs its own rows that were not yet given, and no others.
    """
    import pyarrow.parquet as pq

    with storage.open_read(task["path"]) as stream:
        try:
            file = pq.ParquetFile(stream)
        except _UNREADABLE as error:
            _raise_if_storage(error)
            yield 0, b"", f"not a whole Parquet file, nothing of it can be read: {_line(error)}"
            return
        names = [name for name in dict.fromkeys(file.schema_arrow.names) if wanted is None or name in wanted]
        first = task["first_row"]
        for group in task["groups"]:
            rows = file.metadata.row_group(group).num_rows
            number = first
            try:
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=names):
                    for content in _values(batch):
                        yield number, content, None
                        number += 1
            except _UNREADABLE as error:
                _raise_if_storage(error)
                lost = f"rows {number} to {first + rows - 1} cannot be read, row group {group} is damaged"
                yield number, b"", f"{lost}: {_line(error)}"
            first += rows


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python values. Bytes that are UTF-8 are text: older writers do not say which columns are."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":  # Python's dates end at microseconds
            coarse = batch.column(place).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(place, field.name, coarse)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        columns = list(zip(batch.schema.names, batch.columns, strict=True))
        rows = [{name: _value(column, row) for name, column in columns} for row in range(batch.num_rows)]
    if any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in batch.schema.types):
        rows = [{name: _as_text(value) for name, value in row.items()} for row in rows]
    return rows


def _value(column: pa.Array, row: int) -> Any:
    """One value that Python may not have: bytes for text that is no UTF-8, None for a date beyond the year 9999."""
    cell = column.slice(row, 1)
    if pa.types.is_dictionary(cell.type):
        cell = cell.dictionary_decode()
    try:
        return cell[0].as_py()
    except (ValueError, OverflowError):
        text = pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type)
        return cell.cast(pa.large_binary())[0].as_py() if text else None


def _as_text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _raise_if_storage(error: Exception) -> None:
    """Raise an error that is not the file's fault: it may go well at the next try."""
    if isinstance(error, OSError) and (error.errno is not None or _STORAGE.search(str(error))):
        raise error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
