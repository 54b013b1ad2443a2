"""Lines that many documents repeat: navigation, notices, templates. Llama 3 (arXiv 2407.21783 §3.1.1) after CCNet.

The corpus is cut into buckets of `bucket_documents` documents by their place in the stable order of the input; a line
that occurs more than `max_count` times in its bucket is taken out of that bucket's documents. Counting is exact by
default: sorted 64-bit keys go through the exchange, spilled and counted range by range. By choice it is approximate: a
count-min sketch of fixed size per bucket, with the share of lines that go by mistake measured from the sketch.
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
from cluster.errors import RecipeError
from pipeline import exchange
from pipeline.dedup import index as indexing
from pipeline.dedup import removal
from pipeline.dedup.line_counts import (
    COUNTS,
    KNOWN,
    SKETCH,
    SKETCH_ROWS,
    Waiting,
    add_sketches,
    as_table,
    beyond,
    combined,
    pack_sketch,
    wrongly_removed,
)
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

_BYTES_PER_LINE = 40
"""For sizing buckets: the text bytes that make a line, at the low end of web text."""


class Lines(Corpus):
    """Takes out lines that occur more than `max_count` times in their bucket of documents.

    `keep: first` leaves the first occurrence in the bucket, `keep: none` takes all out (Llama 3), `keep: limit` leaves
    the first `max_count`, so that no document depends on later ones. A document of which no line is left is removed as
    `line_dedup_empty`, one that falls below `min_chars` as `line_dedup_short`; steps that follow in the recipe judge
    the others by what is left. Blank lines are not counted. Two different lines are taken for one with a probability
    of n / 2^64 per line, n the lines of a bucket: below 10^-10 for 10^9.

    `counting: approximate` needs 4 bytes per cell of `sketch_cells` and bucket, whatever the corpus, and no exchange of
    keys. Every line above `max_count` goes; one with c occurrences goes by mistake with probability
    prod_r P(cell of row r > max_count - c), which run.json gives for c = 1 … max_count as `wrongly_removed`.

    With an `index` the lines of earlier snapshots count too, and buckets go on where the last snapshot ended: snapshot
    by snapshot gives what one run over all of them gives. That takes `keep: limit`.
    """

    bucket_documents: int = Field(30_000_000, ge=1, description="documents counted together, by stable ordinal")
    max_count: int = Field(6, ge=1, description="a line that occurs more often than this goes")
    keep: Literal["first", "none", "limit"] = Field(
        "first", description="first: leave the first occurrence; none: take out all; limit: leave the first max_count"
    )
    normalise: Literal["ccnet", "raw"] = Field(
        "ccnet", description="how lines are compared; ccnet: lower case, digits as 0, without Unicode punctuation"
    )
    min_line_bytes: int = Field(1, ge=1, description="shorter lines, without the space around them, always stay")
    min_chars: int = Field(0, ge=0, description="remove documents that lost lines and have fewer characters left")
    counting: Literal["exact", "approximate"] = Field(
        "exact", description="approximate: by a sketch of fixed size; some lines go by mistake, run.json says how many"
    )
    sketch_cells: int = Field(1 << 24, ge=16, description="counters in each of the 4 rows of a sketch, a byte each")
    index: str | None = Field(None, description="folder of an index: the lines counted in it count here, and join them")
    snapshot: str | None = Field(
        None,
        description="name of these documents in the index; a rerun adds nothing, a changed recipe replaces the newest",
    )

    def check(self) -> None:
        indexing.check_names(self.index, self.snapshot, self.step_name())
        if self.index is not None and (self.keep != "limit" or self.counting != "exact"):
            raise RecipeError(
                f"{self.step_name()}: an index takes keep: limit and exact counting, not {self.keep} and"
                f" {self.counting}: what went out earlier cannot depend on lines that come later"
            )
        if self.counting == "approximate" and (self.keep != "none" or self.max_count > 254):
            raise RecipeError(
                f"{self.step_name()}: counting: approximate takes keep: none and max_count up to 254, not {self.keep}"
                f" and {self.max_count}: a sketch knows no places, and counts to 255"
            )
        self._earlier()

    def input_identity(self) -> list[Any]:
        return [snapshot["name"] for snapshot in self._earlier()]

    def _earlier(self) -> list[dict[str, Any]]:
        if self.index is None or self.snapshot is None:
            return []
        names = ("bucket_documents", "max_count", "normalise", "min_line_bytes")
        return indexing.earlier(storage.absolute(self.index), self.snapshot, {n: getattr(self, n) for n in names})

    def warm(self, artifacts: Any) -> None:
        docs = Documents(pa.record_batch({"text": pa.array(["warm\nup"], pa.large_string())}))
        keys = self._keys(docs, 0)[0]
        number = np.arange(len(keys), dtype=np.uint32)
        table = self._table([combined(as_table(keys, number, keys, number))], 0, 0)
        if self.counting == "approximate":
            cells = pa.array(np.zeros(SKETCH_ROWS * self.sketch_cells, np.uint8))
            table = _with_numbers(pa.table({"cells": cells}), 0, 0, 0)
        self.apply(docs, 0, table)

    def _keys(self, docs: Documents, first_ordinal: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(keys uint64 [lines], where each line stops, their offsets [n + 1], bucket of each document [n])."""
        from pipeline.kernels.line_keys import line_keys

        bucket = (first_ordinal + np.arange(len(docs))) // self.bucket_documents
        salt = bucket.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        of_lines = line_keys(*docs.text_buffers(), normalise=self.normalise, salt=salt, min_bytes=self.min_line_bytes)
        return *of_lines, bucket

    def decide(self, stage: StageRun) -> dict[str, Any]:
        earlier = self._earlier()
        earlier = earlier[: stage.fix("earlier_snapshots", len(earlier))]
        before = sum(snapshot["rows"] for snapshot in earlier)
        first = list(itertools.accumulate((p["rows"] for p in stage.partitions), initial=before))
        first_bucket = before // self.bucket_documents
        buckets = -(-(before + stage.rows) // self.bucket_documents) - first_bucket
        places = storage.join(str(stage.folder), "first_rows.json")
        storage.write_bytes(places, json.dumps(first).encode())
        about = {"first_rows": places, "first_bucket": first_bucket}
        width = 24 * sum(p["bytes"] for p in stage.partitions) // _BYTES_PER_LINE // max(1, buckets)
        at_least = -(-stage.workers // max(1, buckets))
        ranges = stage.fix("ranges", exchange.buckets_for(width, stage.memory_bytes, at_least=at_least))
        shape = {"first_bucket": first_bucket, "buckets": buckets, "ranges": ranges}
        tasks = [
            {"partition": p, "first": first[i], "bytes": p["bytes"], **shape} for i, p in enumerate(stage.partitions)
        ]
        if self.counting == "approximate":
            return about | self._sketched(stage, tasks)
        counted = stage.map("lines", tasks)
        spread = [result["counts"] for result in counted]
        frequent = stage.map(
            "count",
            [
                {
                    "range": b,
                    "buckets": buckets,
                    "ranges": ranges,
                    "counts": exchange.only(spread, b),
                    "earlier": [indexing.cut(snapshot, b % ranges, ranges) for snapshot in earlier],
                    "number": len(earlier),
                }
                for b in exchange.filled(spread)
            ],
        )
        if self.index is not None:
            names = ("bucket_documents", "max_count", "normalise", "min_line_bytes")
            added = [{"bands": result["added"], "records": None} for result in frequent]
            settings = {name: getattr(self, name) for name in names}
            folder = storage.absolute(self.index)
            indexing.commit(stage, folder, str(self.snapshot), len(earlier), settings, added)
        return about | {
            "frequent": exchange.save(stage.folder, "frequent", [result["frequent"] for result in frequent]),
            "lines": sum(result["lines"] for result in counted),
            "repeated_lines": sum(result["repeated"] for result in frequent),
            "occurrences": sum(result["occurrences"] for result in frequent),
        }

    def _sketched(self, stage: StageRun, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        made = stage.map("sketch", tasks)
        spread = [result["sketches"] for result in made]
        merge = [{"bucket": b, "sketches": exchange.only(spread, b)} for b in exchange.filled(spread)]
        merged = stage.map("merge", merge)
        return {
            "sketches": exchange.save(stage.folder, "sketches", [result["sketch"] for result in merged]),
            "lines": sum(result["lines"] for result in made),
            "wrongly_removed": [max(of_one) for of_one in zip(*(r["wrong"] for r in merged), strict=True)],
        }

    def _batches(self, task: dict[str, Any], work: Work) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
        """(bucket from the first, keys, offsets into them, first row) of documents that follow each other."""
        row = 0
        for batch in removal.batches(task["partition"], ["text"], None, work):
            keys, _, offsets, buckets = self._keys(Documents(batch), task["first"] + row)
            cuts = np.r_[0, np.flatnonzero(np.diff(buckets)) + 1, len(batch)].tolist() if len(batch) else [0]
            for first, last in itertools.pairwise(cuts):
                bucket = int(buckets[first]) - task["first_bucket"]
                yield bucket, keys, offsets[first : last + 1], row + first
            row += len(batch)

    def lines(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: key, count and first places of every line of a partition, spread by bucket and range of the key."""
        total = task["ranges"] * max(1, task["buckets"])
        lines = 0
        with exchange.Spread(work.path("lines.arrow"), COUNTS, total, memory_bytes=work.memory_bytes) as spread:
            waiting = Waiting(
                spread,
                task["partition"]["index"],
                task["ranges"],
                limit=max(1 << 16, work.memory_bytes // 8),
                expected=task["bytes"] // _BYTES_PER_LINE,
                places=self.max_count if self.keep == "limit" else 1,
            )
            for bucket, keys, offsets, row in self._batches(task, work):
                lines += waiting.add(bucket, keys, offsets, row)
            waiting.flush()
        return {"counts": spread.index, "lines": lines}

    def count(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: the lines of one range that occur too often, and from where on they go, by bucket of documents."""
        occurrences = 0
        path = work.path("added.arrow")  # never written without an index
        if self.index is not None:
            folder = indexing.part_folder(storage.absolute(self.index), task["number"], str(self.snapshot))
            path = storage.join(folder, f"lines-{work.attempt}.arrow")
        memory = work.memory_bytes // (1 if self.index is None else 2)
        frequent = exchange.Spread(work.path("frequent.arrow"), COUNTS, max(1, task["buckets"]), memory_bytes=memory)
        added = exchange.Spread(path, KNOWN, indexing.BUCKETS, sort_by=["key"], memory_bytes=memory)
        with frequent, added:
            for rows in self._whole_keys(task, work):
                if self.keep == "limit":
                    before = self._before(task, np.unique(rows.column("key").to_numpy()))
                    often, key, here = beyond(rows, self.max_count, before)
                    if self.index is not None:
                        known = pa.table([pa.array(key), pa.array(here)], schema=KNOWN)
                        added.add(known, exchange.bucket_of(key, indexing.BUCKETS))
                else:
                    often = rows.filter(pc.greater(rows.column("count"), self.max_count))
                    key, count, address, line = (often.column(name).to_numpy() for name in COUNTS.names)
                    stays = np.uint32(self.keep == "first")  # the place right behind the first occurrence, or (0, 0)
                    often = as_table(key, count, address * np.uint64(stays), (line + np.uint32(1)) * stays)
                occurrences += int(pc.sum(often.column("count")).as_py() or 0)
                frequent.add_run(often, task["range"] // task["ranges"])
        return {
            "frequent": frequent.index,
            "repeated": frequent.index["rows"],
            "occurrences": occurrences,
            "added": added.index,
        }

    def _before(self, task: dict[str, Any], keys: np.ndarray) -> np.ndarray:
        """How often each of the sorted keys came in earlier snapshots (uint32)."""
        before = np.zeros(len(keys), np.uint32)
        for old in indexing.matches(task["earlier"], keys):
            before[np.searchsorted(keys, old.column("key").to_numpy())] += old.column("count").to_numpy()
        return before

    def _whole_keys(self, task: dict[str, Any], work: Work) -> Iterator[pa.Table]:
        """All rows of a key in one table, and one row per key unless `keep` needs the places of several occurrences."""
        from pipeline.kernels.counting import count_keys

        one_by_one = self.keep == "limit"
        if exchange.bucket_bytes(task["counts"], task["range"]) * 4 <= work.memory_bytes:
            table = exchange.collect(task["counts"], task["range"], COUNTS)
            if one_by_one:
                yield table
                return
            key, count, address, line = (table.column(name).to_numpy() for name in COUNTS.names)
            place = np.arange(len(key), dtype=np.uint64)  # tables come in order of partition and row
            key, count, place = count_keys(np.stack([key, place, count.astype(np.uint64)], axis=1))
            yield as_table(key, count, address[place], line[place])
            return
        rest: pa.Table | None = None
        for table in exchange.merge_sorted(
            task["counts"], task["range"], COUNTS, "key", memory_bytes=work.memory_bytes
        ):
            work.progress(table.num_rows)
            rows = table if rest is None else pa.concat_tables([rest, table])
            rows = rows if one_by_one else combined(rows)
            key = rows.column("key").to_numpy()
            whole = int(np.searchsorted(key, key[-1]))
            yield rows.slice(0, whole)
            rest = rows.slice(whole)
        if rest is not None:
            yield rest

    def sketch(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the lines of a partition in a sketch per bucket of documents."""
        from pipeline.kernels.counting import add_to_sketch

        lines, current = 0, -1
        cells = np.zeros((SKETCH_ROWS, self.sketch_cells), np.uint8)
        with exchange.Spread(work.path("sketch.arrow"), SKETCH, max(1, task["buckets"])) as spread:
            for bucket, keys, offsets, _ in self._batches(task, work):
                if bucket != current and current >= 0:
                    spread.add_run(pack_sketch(cells), current)
                    cells[:] = 0
                current = bucket
                mine = keys[offsets[0] : offsets[-1]]
                add_to_sketch(mine, cells)
                lines += int(np.count_nonzero(mine))
            if current >= 0:
                spread.add_run(pack_sketch(cells), current)
        return {"sketches": spread.index, "lines": lines}

    def merge(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: one sketch of all lines of a bucket of documents, and its error."""
        cells = add_sketches(task["sketches"], task["bucket"], self.sketch_cells)
        with exchange.Spread(work.path("merged.arrow"), SKETCH, task["bucket"] + 1) as spread:
            spread.add_run(pack_sketch(cells), task["bucket"])
        return {"sketch": spread.index, "wrong": wrongly_removed(cells, self.max_count)}

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table | None:
        first, after = json.loads(storage.read_bytes(decided["first_rows"]))[partition : partition + 2]
        from_bucket = first // self.bucket_documents
        buckets = range(from_bucket, -(-after // self.bucket_documents))
        numbers = [bucket - decided["first_bucket"] for bucket in buckets]
        if self.counting == "approximate":
            sketches = [add_sketches(exchange.load(decided["sketches"], n), n, self.sketch_cells) for n in numbers]
            cells = np.stack(sketches) if sketches else np.zeros(0, np.uint8)
            return _with_numbers(pa.table({"cells": pa.array(cells.ravel())}), partition, first, from_bucket)
        rows = [exchange.collect(exchange.load(decided["frequent"], n), n, COUNTS) for n in numbers]
        return self._table(rows, partition, first) if any(len(table) for table in rows) else None

    def _table(self, rows: list[pa.Table], partition: int, first: int) -> pa.Table:
        """The frequent lines as an open-addressing table, so that a batch looks them up where they lie."""
        from pipeline.kernels.line_removal import open_table

        table = pa.concat_tables(rows)
        size = 1 << max(1, 2 * len(table) - 1).bit_length()
        key, address, line = (table.column(name).to_numpy() for name in ("key", "address", "line"))
        slots = open_table(key, address, line, size)
        return _with_numbers(pa.table(dict(zip(("key", "address", "line"), slots, strict=True))), partition, first, 0)

    def _goes(
        self, decisions: pa.Table, keys: np.ndarray, ends: np.ndarray, buckets: np.ndarray, address: np.ndarray
    ) -> np.ndarray:
        """Which lines of a batch go (bool)."""
        from pipeline.kernels.counting import more_than
        from pipeline.kernels.line_removal import lines_in_table

        if self.counting == "exact":
            slots, where, number = (decisions.column(name).to_numpy() for name in ("key", "address", "line"))
            return lines_in_table(keys, ends, slots, where, number, address)  # type: ignore[no-any-return]
        sketches = decisions.column("cells").to_numpy().reshape(-1, SKETCH_ROWS, self.sketch_cells)
        from_bucket = _numbers(decisions)["bucket"]
        goes = np.zeros(len(keys), bool)
        for bucket in np.unique(buckets).tolist():
            rows = np.flatnonzero(buckets == bucket)
            here = slice(ends[rows[0]], ends[rows[-1] + 1])
            goes[here] = more_than(keys[here], sketches[bucket - from_bucket], self.max_count)
        return goes

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        from pipeline.kernels.line_removal import without_lines

        if decisions is None or len(docs) == 0:
            return docs.batch, None
        numbers = _numbers(decisions)
        keys, stops, ends, buckets = self._keys(docs, numbers["first"] + first_row)
        goes = self._goes(decisions, keys, ends, buckets, removal.addresses(numbers["partition"], first_row, len(docs)))
        offsets, data, removed, left = without_lines(*docs.text_buffers(), keys, stops, ends, goes)
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


def _with_numbers(table: pa.Table, partition: int, first: int, bucket: int) -> pa.Table:
    """The decisions on a partition with its number, the ordinal of its first document, and that one's bucket."""
    numbers = {"partition": partition, "first": first, "bucket": bucket}
    return table.replace_schema_metadata({name: str(number) for name, number in numbers.items()})


def _numbers(decisions: pa.Table) -> dict[str, int]:
    return {key.decode(): int(value) for key, value in decisions.schema.metadata.items()}
