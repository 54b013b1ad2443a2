"""A persistent index: each new snapshot is deduplicated against all earlier ones.

The index is a folder. Every snapshot adds the documents that stayed: their keys, sorted (of bands, contents, URLs,
lines), and where near-duplicates are looked for, a record of each document with its rank, its bands and what it is
compared by. One JSON object per snapshot, created at the end, names the files; a run that dies leaves nothing that
is read. A new snapshot reads the keys of the earlier ones in order, beside its own, and the records of
those documents alone that share a key with a new one. Texts of earlier snapshots are never read again.

    INDEX/snapshots/00003-2024-10.json   {"number", "name", "settings", "bands": exchange index, "records": files, …}
    INDEX/00003-2024-10/…                the files
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import RecipeError
from pipeline import exchange, manifest
from pipeline.dedup import removal
from pipeline.step import Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

KEYS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("address", pa.uint64(), nullable=False),
        pa.field("file", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),
        pa.field("length", pa.uint32(), nullable=False),
    ]
)
TOUCHED = pa.schema([field for field in KEYS if field.name != "key"])

BUCKETS = 64
"""Ranges into which the keys of every index are cut."""

_OLD = 1 << 63
_SNAPSHOT_BITS = 46
_READ_TOGETHER = 1 << 16
"""Records closer than this many bytes are read at once."""


def old_address(snapshot: int, serial: np.ndarray) -> np.ndarray:
    """The address (uint64) of an indexed document: no partition has it."""
    return np.uint64(_OLD | snapshot << _SNAPSHOT_BITS) | serial.astype(np.uint64)


def is_old(address: np.ndarray) -> np.ndarray:
    """Which addresses are of indexed documents."""
    return address >= np.uint64(_OLD)


def snapshot_of(address: np.ndarray) -> np.ndarray:
    """Number of the snapshot (int64) of indexed documents."""
    return ((address & np.uint64(_OLD - 1)) >> np.uint64(_SNAPSHOT_BITS)).astype(np.int64)


def earlier(folder: str, name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The snapshots that were added before `name` (all of them when it is new), in order.

    Raises RecipeError when they were made with other settings, for then their keys mean something else.
    """
    found: list[dict[str, Any]] = []
    for entry in storage.list_files(storage.join(folder, "snapshots")):
        snapshot = manifest.load(storage.read_bytes(entry.path), folder)
        if snapshot["name"] == name:
            break
        if snapshot["settings"] != settings:
            differ = {
                k: (snapshot["settings"].get(k), v) for k, v in settings.items() if snapshot["settings"].get(k) != v
            }
            raise RecipeError(
                f"index {folder}: snapshot '{snapshot['name']}' was made with other settings: (there, here) {differ}; "
                "use the same, or another index folder"
            )
        found.append(snapshot)
    return found


def check_names(index: str | None, snapshot: str | None, step: str) -> None:
    """Refuse an index without a name for these documents in it, and the name alone. Raises RecipeError."""
    if (index is None) != (snapshot is None):
        raise RecipeError(f"{step}: index and snapshot need each other: the folder, and a name for this part")


def part_folder(folder: str, number: int, name: str) -> str:
    """Where the files of a snapshot are."""
    return storage.join(folder, f"{number:05d}-{name}")


def commit(
    stage: StageRun, folder: str, name: str, number: int, settings: dict[str, Any], published: list[dict[str, Any]]
) -> None:
    """Add a stage's documents to the index as snapshot `name`. Doing it again changes nothing.

    A stage of another recipe under the same name takes the snapshot's place while it is the newest. Once later ones
    were compared with it, it stays as it is, and a line says so.
    """
    snapshot = {
        "number": number,
        "name": name,
        "settings": settings,
        "bands": [result["bands"] for result in published],
        "records": [result["records"] for result in published],
        "rows": stage.rows,
        "made_by": stage.fingerprint,
    }
    listed = storage.join(folder, "snapshots")
    path = storage.join(listed, f"{number:05d}-{name}.json")
    data = manifest.dump(snapshot, folder)
    if storage.put_if_absent(path, data):
        return
    if manifest.load(storage.read_bytes(path), folder).get("made_by") == stage.fingerprint:
        return
    if later := [entry.path for entry in storage.list_files(listed) if entry.path > path]:
        stage.console.line(
            f"index {folder}: snapshot '{name}' stays as another recipe or other input made it, for {len(later)} later "
            f"ones were compared with it; documents that only this run removes are still in it. To make it anew, "
            f"delete {path} and the later ones beside it, and run their recipes again into new folders"
        )
    else:
        storage.write_bytes(path, data)


def cut(snapshot: dict[str, Any], bucket: int, buckets: int) -> dict[str, Any]:
    """The snapshot's keys that can lie in one of `buckets` ranges: what a reduce task needs in its description."""
    inside = range(bucket * BUCKETS // buckets, ((bucket + 1) * BUCKETS - 1) // buckets + 1)
    kept = [{**index, "runs": [run for run in index["runs"] if run[0] in inside]} for index in snapshot["bands"]]
    return {"bands": [index for index in kept if index["runs"]]}


def matches(snapshots: list[dict[str, Any]], keys: np.ndarray) -> Iterator[pa.Table]:
    """Rows of KEYS whose key is among `keys` (uint64, sorted), snapshot by snapshot and range by range."""
    if len(keys) == 0:
        return
    low, high = exchange.bucket_of(keys[[0, -1]], BUCKETS).tolist()
    for snapshot in snapshots:
        for bucket in range(low, high + 1):
            for batch in exchange.stream(snapshot["bands"], bucket, KEYS):
                indexed = batch.column("key").to_numpy()
                at = np.minimum(np.searchsorted(keys, indexed), len(keys) - 1)
                here = np.flatnonzero(keys[at] == indexed)
                if len(here):
                    yield pa.Table.from_batches([batch.take(pa.array(here))])


def pack(ranks: list[np.ndarray], bands: list[np.ndarray], offsets: np.ndarray, values: np.ndarray) -> list[bytes]:
    """One record per document: number of ranks, bands and values, then the three arrays."""
    out = []
    table = np.stack([rank.view(np.int64) for rank in ranks], axis=1) if ranks else np.zeros((len(bands), 0), np.int64)
    for i, keys in enumerate(bands):
        mine = values[offsets[i] : offsets[i + 1]]
        head = np.array([table.shape[1], len(keys), len(mine), 0], np.uint32)
        out.append(head.tobytes() + table[i].tobytes() + keys.tobytes() + mine.tobytes())
    return out


def unpack(record: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ranks int64, bands uint64, values uint32) of a record."""
    ranks, bands, values, _ = np.frombuffer(record, np.uint32, 4)
    start = 16 + 8 * int(ranks)
    middle = start + 8 * int(bands)
    return (
        np.frombuffer(record, np.int64, ranks, 16),
        np.frombuffer(record, np.uint64, bands, start),
        np.frombuffer(record, np.uint32, values, middle),
    )


def records(snapshot: dict[str, Any], touched: pa.Table) -> Iterator[tuple[int, bytes]]:
    """(address, record) of indexed documents of one snapshot, each once; near ones are read together."""
    columns = [touched.column(name).to_numpy() for name in ("file", "offset", "length", "address")]
    order = np.lexsort((columns[1], columns[0]))
    rows = np.stack([column[order].astype(np.uint64) for column in columns], axis=1)
    rows = rows[np.r_[True, rows[1:, 3] != rows[:-1, 3]]] if len(rows) else rows
    gaps = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 1] - rows[:-1, 1] > np.uint64(_READ_TOGETHER))
    for group in np.split(rows, np.flatnonzero(gaps) + 1) if len(rows) else []:
        start, end = int(group[0, 1]), int(group[-1, 1] + group[-1, 2])
        with storage.open_read(snapshot["records"][int(group[0, 0])]) as source:
            block = source.read_at(end - start, start)
        for _, offset, length, address in group.tolist():
            yield address, block[offset - start : offset - start + length]


def publish(task: dict[str, Any], work: Work, removed_rows: np.ndarray) -> dict[str, Any]:
    """Map: write the records and keys of the documents of a partition that stay into the index's folder."""
    folder = part_folder(task["index"], task["number"], task["name"])
    stem = f"{task['partition']:06d}-{work.attempt}"
    gone = set(removed_rows.tolist())
    place = 0
    serial = task["serial"]
    path = storage.join(folder, f"records-{stem}.bin")
    with (
        storage.open_write(path) as out,
        exchange.Spread(
            storage.join(folder, f"keys-{stem}.arrow"), KEYS, BUCKETS, sort_by=["key"], memory_bytes=work.memory_bytes
        ) as spread,
    ):
        for batch in exchange.stream([task["records"]], 0, removal.RECORDS):
            keys, owners, offsets, lengths = [], [], [], []
            for row, record in zip(batch.column("row").to_pylist(), batch.column("record").to_pylist(), strict=True):
                if row in gone:
                    continue
                bands = unpack(record)[1]
                keys.append(bands)
                owners.append(np.full(len(bands), serial + row))
                offsets.append(np.full(len(bands), place, np.uint64))
                lengths.append(np.full(len(bands), len(record), np.uint32))
                out.write(record)
                place += len(record)
            work.progress(batch.num_rows)
            if keys:
                key = np.concatenate(keys)
                columns = [
                    key,
                    old_address(task["number"], np.concatenate(owners)),
                    np.full(len(key), task["partition"], np.uint32),
                    np.concatenate(offsets),
                    np.concatenate(lengths),
                ]
                rows = pa.table([pa.array(column) for column in columns], schema=KEYS)
                spread.add(rows, exchange.bucket_of(key, BUCKETS))
    return {"bands": spread.index, "records": path}
