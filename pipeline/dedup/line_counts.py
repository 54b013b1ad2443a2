"""How often lines occur: in runs that are sorted by key and go through the exchange, or in a sketch of fixed size.

A run of exact counts has rows of COUNTS: `count` occurrences of a line, the first of them at (address, line). With
`places` above 1 the first so many occurrences of a run have a row each, so that over all runs the place of each of
them is known.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import exchange
from pipeline.dedup import removal

COUNTS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("count", pa.uint32(), nullable=False),
        pa.field("address", pa.uint64(), nullable=False),  # of the first document with the line
        pa.field("line", pa.uint32(), nullable=False),  # its number there
    ]
)

KNOWN = pa.schema([pa.field("key", pa.uint64(), nullable=False), pa.field("count", pa.uint32(), nullable=False)])
"""What an index keeps of a line."""

LINE_BITS = 24
"""Bits for the number of a line in its document; the lines of one document beyond 2^24 share the last number."""

SKETCH_ROWS = 4

SKETCH = pa.schema([pa.field("cells", pa.large_binary(), nullable=False)])
"""One sketch, compressed by zstd."""


class Waiting:
    """Lines of one bucket of documents until there are enough of them for a sorted run."""

    def __init__(self, spread: exchange.Spread, partition: int, ranges: int, *, limit: int, expected: int, places: int):
        self._spread, self._partition, self._ranges, self._places = spread, partition, ranges, places
        self._room = max(1, limit // 16)
        self._bucket = self._used = 0
        self._lines = np.empty((min(expected, self._room), 2), np.uint64)  # key and place; grows up to the limit
        self._spare = np.empty((0, 2), np.uint64)

    def add(self, bucket: int, keys: np.ndarray, ends: np.ndarray, first_row: int) -> int:
        """The lines of whole documents: document i has keys[ends[i] : ends[i + 1]]. How many are not blank."""
        from pipeline.kernels.counting import add_lines

        if bucket != self._bucket:
            self.flush()
            self._bucket = bucket
        needed = self._used + int(ends[-1] - ends[0]) + 1
        if needed > len(self._lines):
            lines = np.empty((max(needed, min(2 * len(self._lines), self._room)), 2), np.uint64)
            lines[: self._used] = self._lines[: self._used]
            self._lines = lines
        used = int(add_lines(keys, ends, first_row, LINE_BITS, self._lines[self._used :]))
        self._used += used
        if self._used > self._room:
            self.flush()
        return used

    def flush(self) -> None:
        """Write what waits as a run."""
        from pipeline.kernels.counting import count_keys

        if self._used == 0:
            return
        lines = self._lines[: self._used]
        if self._places > 1:
            keys, counts, places = _first_places(lines, self._places)
        else:
            if len(self._spare) < self._used:
                self._spare = np.empty_like(self._lines)
            keys, counts, places = count_keys(lines, self._spare)
        self._used = 0
        address = removal.addresses(self._partition, 0, 1) + (places >> np.uint64(LINE_BITS))
        line = (places & np.uint64((1 << LINE_BITS) - 1)).astype(np.uint32)
        rows = as_table(keys, counts, address, line)
        edges = np.searchsorted(exchange.bucket_of(keys, self._ranges), range(self._ranges + 1))
        for number, (start, end) in enumerate(itertools.pairwise(edges.tolist())):
            self._spread.add_run(rows.slice(start, end - start), self._bucket * self._ranges + number)


def _first_places(lines: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(key, count, place) of the first `places` occurrences of each key, in order; the last of them counts the rest."""
    lines = lines[np.lexsort((lines[:, 1], lines[:, 0]))]
    starts, group, number = _groups(lines[:, 0])
    total = np.diff(np.r_[starts, len(lines)])
    taken = number < places
    counts = np.where(number == places - 1, total[group] - (places - 1), 1).astype(np.uint32)
    return lines[taken, 0], counts[taken], lines[taken, 1]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sorted keys: where each distinct one begins; for each row the number of its key, and its number within it."""
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(keys)]))
    return starts, group, np.arange(len(keys)) - starts[group]


def as_table(key: np.ndarray, count: np.ndarray, address: np.ndarray, line: np.ndarray) -> pa.Table:
    """Rows of COUNTS."""
    return pa.table([pa.array(key), pa.array(count), pa.array(address), pa.array(line)], schema=COUNTS)


def combined(table: pa.Table) -> pa.Table:
    """One row per key, in order of key: its counts summed, its least place."""
    from pipeline.kernels.line_keys import combine

    order = np.argsort(table.column("key").to_numpy())
    columns = [table.column(name).to_numpy()[order] for name in COUNTS.names]
    used = combine(*columns)
    return as_table(*(column[:used] for column in columns))


def beyond(table: pa.Table, limit: int, before: np.ndarray) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Where the lines begin to go of which the first `limit` stay.

    table: COUNTS of whole keys, several rows each; before: uint32 [distinct keys], how often each came in earlier
    snapshots. (COUNTS of the keys with more than `limit` occurrences: all occurrences, and the place right behind the
    last that stays, (0, 0) if none does; distinct keys; how often each came here)
    """
    key, count, address, line = (table.column(name).to_numpy() for name in COUNTS.names)
    order = np.lexsort((line, address, key))
    key, count, address, line = (column[order] for column in (key, count, address, line))
    starts, _, _ = _groups(key)
    here = np.add.reduceat(count.astype(np.int64), starts) if len(starts) else np.zeros(0, np.int64)
    stay = np.maximum(0, limit - before.astype(np.int64))
    often = np.flatnonzero(here + before > limit)
    last = starts[often] + stay[often] - 1  # a key that came too often has a row for each of the first `limit`
    none = stay[often] == 0
    address = np.where(none, np.uint64(0), address[last])
    line = np.where(none, 0, line[last] + np.uint32(1)).astype(np.uint32)
    counts = np.minimum(here, 0xFFFFFFFF).astype(np.uint32)
    return as_table(key[starts[often]], counts[often], address, line), key[starts], counts


def pack_sketch(cells: np.ndarray) -> pa.Table:
    """A sketch as a row of SKETCH."""
    return pa.table([pa.array([pa.Codec("zstd").compress(cells.tobytes(), asbytes=True)])], schema=SKETCH)


def add_sketches(indices: list[dict[str, Any]], bucket: int, cells: int) -> np.ndarray:
    """The sum of all sketches of a bucket of documents (uint8 [SKETCH_ROWS, cells]), stopping at 255."""
    total = np.zeros((SKETCH_ROWS, cells), np.uint8)
    for batch in exchange.stream(indices, bucket, SKETCH):
        for row in batch.column("cells"):
            raw = pa.Codec("zstd").decompress(row.as_buffer(), SKETCH_ROWS * cells, asbytes=True)
            more = np.frombuffer(raw, np.uint8).reshape(SKETCH_ROWS, cells)
            total = np.where(total > 255 - more, np.uint8(255), total + more)
    return total


def wrongly_removed(sketch: np.ndarray, limit: int) -> list[float]:
    """Of a line that occurs 1, 2, … `limit` times the probability that the sketch says more than `limit`.

    A line with c occurrences is taken for one with more than `limit` when in each row r of the sketch the others in its
    cell make up for the difference: the product over r of the share of cells in r above limit - c. This is of a
    line besides those counted, from the counts themselves and not from a bound on them; a line with more than `limit`
    occurrences is never missed. (Cormode & Muthukrishnan 2005, whose bound is that of Markov's inequality.)
    """
    shares = [[float((row > limit - c).mean()) for row in sketch] for c in range(1, limit + 1)]
    return [float(np.prod(of_one)) for of_one in shares]
