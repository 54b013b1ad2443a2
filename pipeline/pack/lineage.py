"""From a document to its packed rows, and from a trainer's place in the data to the documents that it has seen.

Pure functions over a packed folder (dataset.json and its shards): no run and no trainer is needed. A trainer's place
is its cursor, the number of rows it has consumed: row c of a run is row c % rows of epoch c // rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from pipeline.pack.dataset import TRAIN, VALIDATION
from pipeline.schema import DATASET_FILE

Read = tuple[str, int, int]
"""Rows of one packed folder: (folder, first, row after the last); beyond the folder's rows lie further epochs."""
Reading = tuple[str, int, Sequence[Read]]
"""A checkpoint, its step, and what it has read of each data set."""


@dataclass(frozen=True)
class Place:
    """A piece of a document in the packed rows.

    row            global row of the split            shard, shard_row   where that is
    start, length  the tokens of the row that are the document's          number   which document of the row it is
    """

    split: str
    row: int
    shard: str
    shard_row: int
    start: int
    length: int
    number: int

    def times_seen(self, cursor: int, rows: int) -> int:
        """How often a run that has consumed `cursor` rows, of a split of `rows`, has trained on this piece."""
        return cursor // rows + (self.row < cursor % rows)


def places(folder: str, doc_id: bytes, split: str = TRAIN) -> list[Place]:
    """Every piece of a document, in order of global rows; a document that is packed repeatedly has several.

    Reads the columns doc_ids and doc_lengths of all shards (some 20 bytes a document).
    """
    found: list[Place] = []
    first = 0
    for shard in _part(folder, split)["shards"]:
        for group_row, ids, lengths in _identities(storage.join(folder, shard["path"])):
            hits = np.flatnonzero(
                pc.equal(ids.flatten(), pa.scalar(doc_id, ids.type.value_type)).to_numpy(zero_copy_only=False)
            )
            offsets = ids.offsets.to_numpy().astype(np.int64) - ids.offsets[0].as_py()
            sizes = lengths.flatten().to_numpy().astype(np.int64)
            before = np.concatenate([[0], np.cumsum(sizes)])
            for hit in hits.tolist():
                row = int(np.searchsorted(offsets, hit, "right")) - 1
                start = int(before[hit] - before[offsets[row]])
                at = group_row + row
                found.append(
                    Place(split, first + at, shard["path"], at, start, int(sizes[hit]), hit - int(offsets[row]))
                )
        first += shard["rows"]
    return found


def splits_of(folder: str) -> list[str]:
    """The splits that a packed folder has."""
    return [TRAIN, *([VALIDATION] if VALIDATION in _dataset(folder) else [])]


def rows_of(folder: str, split: str = TRAIN) -> int:
    """Rows of a split: one epoch."""
    return int(_part(folder, split)["rows"])


def seen(folder: str, cursor: int, *, first: int = 0, split: str = TRAIN) -> pa.Table:
    """The documents in rows [first, cursor) of a run, by doc_id: times (pieces seen, epochs counted) and tokens."""
    rows = rows_of(folder, split)
    if not 0 <= first <= cursor:
        raise DataError(f"{folder}: rows [{first}, {cursor}) are no part of a run")
    ids: list[pa.Array] = []
    times: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    at = 0
    for shard in _part(folder, split)["shards"]:
        for group_row, group_ids, lengths in _identities(storage.join(folder, shard["path"])):
            row = at + group_row + pc.list_parent_indices(group_ids).to_numpy().astype(np.int64)
            count = _seen_before(row, cursor, rows) - _seen_before(row, first, rows)
            mask = count > 0
            ids.append(group_ids.flatten().filter(pa.array(mask)))
            times.append(count[mask])
            tokens.append(count[mask] * lengths.flatten().to_numpy()[mask])
        at += shard["rows"]
    table = pa.table(
        {
            "doc_id": pa.chunked_array(ids, pa.binary()),
            "times": np.concatenate(times) if times else np.zeros(0, np.int64),
            "tokens": np.concatenate(tokens) if tokens else np.zeros(0, np.int64),
        }
    )
    summed = table.group_by("doc_id").aggregate([("times", "sum"), ("tokens", "sum")])
    return summed.rename_columns(["doc_id", "times", "tokens"]).sort_by("doc_id")


def _seen_before(row: np.ndarray, cursor: int, rows: int) -> np.ndarray:
    return cursor // rows + (row < cursor % rows).astype(np.int64)


def _dataset(folder: str) -> dict[str, Any]:
    try:
        dataset: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, DATASET_FILE)))
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no {DATASET_FILE}; give the folder of packed rows") from None
    return dataset


def _part(folder: str, split: str) -> dict[str, Any]:
    dataset = _dataset(folder)
    if split == TRAIN:
        return dataset
    if split not in dataset:
        raise DataError(f"{folder}: its {DATASET_FILE} has no split '{split}'")
    part: dict[str, Any] = dataset[split]
    return part


def _identities(path: str) -> Iterator[tuple[int, pa.ListArray, pa.ListArray]]:
    """(first row, doc_ids, doc_lengths) of each row group of a shard."""
    with storage.open_read(path) as source:
        file = pq.ParquetFile(source)
        first = 0
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, ["doc_ids", "doc_lengths"], use_threads=False).combine_chunks()
            if table.num_rows:
                yield first, table.column("doc_ids").chunk(0), table.column("doc_lengths").chunk(0)
            first += table.num_rows


def documents_seen(read: Sequence[Read]) -> pa.Table:
    """doc_id, times (pieces seen, epochs counted), tokens, folder: of all data sets of a mixture, each by doc_id."""
    tables = []
    for folder, first, end in read:
        table = seen(folder, end, first=first)
        tables.append(table.append_column("folder", pa.repeat(folder, table.num_rows)))
    return pa.concat_tables(tables)


def times_seen(read: Sequence[Read], doc_id: bytes) -> list[tuple[str, Place, int]]:
    """(packed folder, where a piece of the document lies in it, how often that was read)."""
    found = []
    for folder, first, end in read:
        rows = rows_of(folder)
        for piece in places(folder, doc_id):
            found.append((folder, piece, piece.times_seen(end, rows) - piece.times_seen(first, rows)))
    return found


def told(readings: Sequence[Reading], document: str | None, out: str | None = None) -> list[str]:
    """Lines for people: what the last of some checkpoints has seen in all, or of one document (hex doc_id), and which
    of several saw that. With `out`, all documents seen are written there as Parquet."""
    _, step, read = readings[-1]
    if document is not None:
        doc_id = _doc_id(document)
        pieces = times_seen(read, doc_id)
        if not pieces:
            folders = ", ".join(folder for folder, _, _ in read)
            return [f"{document} is not in {folders}: it was removed, or held out for validation"]
        lines = [
            f"{document}: {folder}, row {piece.row} ({piece.shard}), tokens {piece.start} to "
            f"{piece.start + piece.length}: seen {times} times by step {step}"
            for folder, piece, times in pieces
        ]
        if len(readings) == 1:
            return lines
        saw = [name for name, _, rows in readings if any(times for _, _, times in times_seen(rows, doc_id))]
        return lines + [f"seen by {name}" for name in saw]
    table = documents_seen(read)
    if out is not None:
        with storage.open_write(out) as sink:
            pq.write_table(table, sink)
    lines = []
    for folder, first, end in read:
        rows = rows_of(folder)
        epochs = f"{(end - first) / rows:.2f} epochs"
        lines.append(f"step {step}: {end - first:,} rows of {rows:,} consumed ({epochs}), {folder}")
    tokens = pc.sum(table.column("tokens")).as_py() or 0
    wrote = f"; written to {out}" if out else ""
    return [*lines, f"{table.num_rows:,} documents seen, {tokens:,} tokens{wrote}"]


def _doc_id(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise DataError(f"'{text}' is no doc_id: expected 32 hexadecimal digits, as `corpusmill why` prints them")
    return value
