"""Lines that many documents repeat: navigation, notices, templates. Llama 3 (arXiv 2407.21783 §3.1.1) after CCNet.

The corpus is cut into buckets of `bucket_documents` documents by their place in the stable order of the input; a line
that occurs more than `max_count` times in its bucket is taken out of that bucket's documents. Counting is exact: sorted
64-bit keys go through the exchange, spilled and counted range by range.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster import storage
from pipeline import exchange
from pipeline.dedup import removal
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

COUNTS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("count", pa.uint32(), nullable=False),
        pa.field("address", pa.uint64(), nullable=False),  # of the first document with the line
        pa.field("line", pa.uint32(), nullable=False),  # its number there
    ]
)

LINE_BITS = 24
"""Bits for the number of a line in its document; the lines of one document beyond 2^24 share the last number."""

_BYTES_PER_LINE = 40
"""For sizing buckets: the text bytes that make a line, at the low end of web text."""


class Lines(Corpus):
    """Takes out lines that occur more than `max_count` times in their bucket of documents.

    `keep: first` leaves the first occurrence in the bucket, `keep: none` takes all out (Llama 3). A document of which
    no line is left is removed as `line_dedup_empty`, one that falls below `min_chars` as `line_dedup_short`; steps that
    follow in the recipe judge the others by what is left. Blank lines are not counted. Two different lines are
    taken for one with a probability of n / 2^64 per line, n the lines of a bucket: below 10^-10 for 10^9.
    """

    bucket_documents: int = Field(30_000_000, ge=1, description="documents counted together, by stable ordinal")
    max_count: int = Field(6, ge=1, description="a line that occurs more often than this goes")
    keep: Literal["first", "none"] = Field("first", description="first: leave the first occurrence; none: take out all")
    normalise: Literal["ccnet", "raw"] = Field(
        "ccnet", description="how lines are compared; ccnet: lower case, digits as 0, without Unicode punctuation"
    )
    min_line_bytes: int = Field(1, ge=1, description="shorter lines, without the space around them, always stay")
    min_chars: int = Field(0, ge=0, description="remove documents that lost lines and have fewer characters left")

    def warm(self, artifacts: Any) -> None:
        docs = Documents(pa.record_batch({"text": pa.array(["warm\nup"], pa.large_string())}))
        keys = self._keys(docs, 0)[0]
        number = np.arange(len(keys), dtype=np.uint32)
        self.apply(docs, 0, self._table([_combined(_frequent(keys, number, keys, number))], 0, 0))

    def _keys(self, docs: Documents, first_ordinal: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(keys uint64 [lines], where each line stops, their offsets [n + 1], bucket of each document [n])."""
        from pipeline.kernels.line_keys import line_keys

        bucket = (first_ordinal + np.arange(len(docs))) // self.bucket_documents
        salt = bucket.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        of_lines = line_keys(*docs.text_buffers(), normalise=self.normalise, salt=salt, min_bytes=self.min_line_bytes)
        return *of_lines, bucket

    def decide(self, stage: StageRun) -> dict[str, Any]:
        first = [0, *itertools.accumulate(p["rows"] for p in stage.partitions)]
        buckets = -(-stage.rows // self.bucket_documents)
        width = 24 * sum(p["bytes"] for p in stage.partitions) // _BYTES_PER_LINE // max(1, buckets)
        at_least = -(-stage.workers // max(1, buckets))
        ranges = stage.fix("ranges", exchange.buckets_for(width, stage.memory_bytes, at_least=at_least))
        counted = stage.map(
            "lines",
            [
                {"partition": p, "first": first[i], "ranges": ranges, "buckets": buckets, "bytes": p["bytes"]}
                for i, p in enumerate(stage.partitions)
            ],
        )
        spread = [result["counts"] for result in counted]
        frequent = stage.map(
            "count",
            [
                {"range": b, "bucket": b // ranges, "buckets": buckets, "counts": exchange.only(spread, b)}
                for b in exchange.filled(spread)
            ],
        )
        places = storage.join(str(stage.folder), "first_rows.json")
        storage.write_bytes(places, json.dumps(first).encode())
        return {
            "first_rows": places,
            "frequent": exchange.save(stage.folder, "frequent", [result["frequent"] for result in frequent]),
            "lines": sum(result["lines"] for result in counted),
            "repeated_lines": sum(result["repeated"] for result in frequent),
            "occurrences": sum(result["occurrences"] for result in frequent),
        }

    def lines(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: key, count and first place of every line of a partition, spread by bucket and range of the key."""
        index = task["partition"]["index"]
        lines = row = 0
        total = task["ranges"] * max(1, task["buckets"])
        with exchange.Spread(work.path("lines.arrow"), COUNTS, total, memory_bytes=work.memory_bytes) as spread:
            expected = task["bytes"] // _BYTES_PER_LINE
            waiting = _Waiting(spread, index, task["ranges"], max(1 << 16, work.memory_bytes // 8), expected)
            for batch in removal.batches(task["partition"], ["text"], None, work):
                keys, _, offsets, buckets = self._keys(Documents(batch), task["first"] + row)
                cuts = np.r_[0, np.flatnonzero(np.diff(buckets)) + 1, len(batch)].tolist() if len(batch) else [0]
                for first, last in itertools.pairwise(cuts):
                    lines += waiting.add(int(buckets[first]), keys, offsets[first : last + 1], row + first)
                row += len(batch)
            waiting.flush()
        return {"counts": spread.index, "lines": lines}

    def count(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: the lines of one range that occur too often, spread by bucket of documents."""
        occurrences = 0
        with exchange.Spread(
            work.path("frequent.arrow"), COUNTS, max(1, task["buckets"]), memory_bytes=work.memory_bytes
        ) as spread:
            for rows in self._whole_keys(task, work):
                often = rows.filter(pc.greater(rows.column("count"), self.max_count))
                occurrences += int(pc.sum(often.column("count")).as_py() or 0)
                spread.add_run(often, task["bucket"])
        return {"frequent": spread.index, "repeated": spread.index["rows"], "occurrences": occurrences}

    def _whole_keys(self, task: dict[str, Any], work: Work) -> Iterator[pa.Table]:
        """One row per key, over all tables that the key comes in."""
        from pipeline.kernels.counting import count_keys

        if exchange.bucket_bytes(task["counts"], task["range"]) * 4 <= work.memory_bytes:
            table = exchange.collect(task["counts"], task["range"], COUNTS)
            key, count, address, line = (table.column(name).to_numpy() for name in COUNTS.names)
            place = np.arange(len(key), dtype=np.uint64)  # tables come in order of partition and row
            key, count, place = count_keys(np.stack([key, place, count.astype(np.uint64)], axis=1))
            yield _frequent(key, count, address[place], line[place])
            return
        rest: pa.Table | None = None
        for table in exchange.merge_sorted(
            task["counts"], task["range"], COUNTS, "key", memory_bytes=work.memory_bytes
        ):
            work.progress(table.num_rows)
            rows = _combined(table if rest is None else pa.concat_tables([rest, table]))
            yield rows.slice(0, len(rows) - 1)
            rest = rows.slice(len(rows) - 1)
        if rest is not None:
            yield rest

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table | None:
        first, after = json.loads(storage.read_bytes(decided["first_rows"]))[partition : partition + 2]
        buckets = range(first // self.bucket_documents, -(-after // self.bucket_documents))
        rows = [exchange.collect(exchange.load(decided["frequent"], bucket), bucket, COUNTS) for bucket in buckets]
        return self._table(rows, partition, first) if any(len(table) for table in rows) else None

    def _table(self, rows: list[pa.Table], partition: int, first: int) -> pa.Table:
        """The frequent lines as an open-addressing table, so that a batch looks them up where they lie."""
        from pipeline.kernels.line_removal import open_table

        table = pa.concat_tables(rows)
        size = 1 << max(1, 2 * len(table) - 1).bit_length()
        key, address, line = (table.column(name).to_numpy() for name in ("key", "address", "line"))
        slots = open_table(key, address, line, size)
        return pa.table(dict(zip(("key", "address", "line"), slots, strict=True))).replace_schema_metadata(
            {"partition": str(partition), "first": str(first)}
        )

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        from pipeline.kernels.line_removal import without_lines

        if decisions is None or len(docs) == 0:
            return docs.batch, None
        metadata = {key.decode(): int(value) for key, value in decisions.schema.metadata.items()}
        keys, stops, ends, _ = self._keys(docs, metadata["first"] + first_row)
        slots, where, number = (decisions.column(name).to_numpy() for name in ("key", "address", "line"))
        address = removal.addresses(metadata["partition"], first_row, len(docs))
        before, text_bytes = docs.text_buffers()
        offsets, data, removed, left = without_lines(
            before, text_bytes, keys, stops, ends, slots, where, number, address, self.keep == "first"
        )
        if not removed.any():
            return docs.batch, None
        text = pa.LargeStringArray.from_buffers(len(docs), pa.py_buffer(offsets), pa.py_buffer(data))
        batch = removal.set_column(docs.batch, "text", text, docs.batch.schema.field("text"))
        verdict = Verdict.keep(len(docs))
        lengths = pc.utf8_length(text).to_numpy(zero_copy_only=False)
        short = (removed > 0) & (lengths < self.min_chars)
        empty = (removed > 0) & (left == 0)
        verdict.reason[short], verdict.reason[empty] = "line_dedup_short", "line_dedup_empty"
        verdict.score[short | empty] = lengths[short | empty]
        verdict.threshold[short] = self.min_chars
        verdict.threshold[empty] = math.nan
        return batch, verdict


class _Waiting:
    """Lines of one bucket of documents until there are enough of them for a sorted run."""

    def __init__(self, spread: exchange.Spread, partition: int, ranges: int, limit: int, expected: int):
        self._spread, self._partition, self._ranges = spread, partition, ranges
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
        from pipeline.kernels.counting import count_keys

        if self._used == 0:
            return
        if len(self._spare) < self._used:
            self._spare = np.empty_like(self._lines)
        keys, counts, places = count_keys(self._lines[: self._used], self._spare)
        self._used = 0
        address = removal.addresses(self._partition, 0, 1) + (places >> np.uint64(LINE_BITS))
        line = (places & np.uint64((1 << LINE_BITS) - 1)).astype(np.uint32)
        rows = _frequent(keys, counts, address, line)
        edges = np.searchsorted(exchange.bucket_of(keys, self._ranges), range(self._ranges + 1))
        for number, (start, end) in enumerate(itertools.pairwise(edges.tolist())):
            self._spread.add_run(rows.slice(start, end - start), self._bucket * self._ranges + number)


def _frequent(keys: np.ndarray, counts: np.ndarray, address: np.ndarray, line: np.ndarray) -> pa.Table:
    return pa.table([pa.array(keys), pa.array(counts), pa.array(address), pa.array(line)], schema=COUNTS)


def _combined(table: pa.Table) -> pa.Table:
    """One row per key, in order of key: its counts summed, its least place."""
    from pipeline.kernels.line_keys import combine

    order = np.argsort(table.column("key").to_numpy())
    columns = [table.column(name).to_numpy()[order] for name in COUNTS.names]
    used = combine(*columns)
    return _frequent(*(column[:used] for column in columns))
