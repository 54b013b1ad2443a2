"""Exact substrings: spans of 50 words or more that occur more than once in the corpus (Lee et al. 2107.06499).

A span of n or more units repeats exactly when each of its n-unit windows does. So instead of one suffix array over the
whole corpus, which needs more memory than any machine has, 64-bit hashes of all windows go through the exchange: the
tokens found are the same, on any number of workers, in bounded memory, at 20 bytes a unit on the storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline import exchange
from pipeline.dedup import removal
from pipeline.step import Corpus, Documents, Verdict, Work, string_buffers

if TYPE_CHECKING:
    from pipeline.run import StageRun

WINDOWS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("address", pa.uint64(), nullable=False),
        pa.field("place", pa.uint32(), nullable=False),  # number of the window's first unit in its document
    ]
)
REPEATED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("place", pa.uint32(), nullable=False),
        pa.field("first", pa.bool_(), nullable=False),
    ]
)

_BYTES_PER_UNIT = 6


class Substring(Corpus):
    """Cuts out spans of at least `min_units` words that occur before, here or in another document.

    Words are compared in lower case and without what stands between them; where no spaces are written, characters
    are. `keep: first` leaves the first occurrence in the stable order of the input whole, `keep: none` cuts all. What
    an occurrence that stays needs is never cut, so nothing is lost from the corpus altogether. Emptied documents
    are removed as `substring_empty`, those below `min_chars` as `substring_short`.
    """

    min_units: int = Field(50, ge=2, description="length of the shortest span, in words (tokens in the paper)")
    keep: Literal["first", "none"] = Field("first", description="first: leave the first occurrence; none: cut all")
    min_chars: int = Field(0, ge=0, description="remove documents that were cut and have fewer characters left")

    def warm(self, artifacts: Any) -> None:
        from pipeline.kernels.minhash import unit_spans, windows

        docs = string_buffers(pa.array(["a few words"], pa.large_string()))
        windows(*docs, ngram=self.min_units)
        unit_spans(*docs)

    def decide(self, stage: StageRun) -> dict[str, Any]:
        rows = sum(p["bytes"] for p in stage.partitions) // _BYTES_PER_UNIT
        buckets = stage.fix("buckets", exchange.buckets_for(20 * rows, stage.memory_bytes, at_least=stage.workers))
        tasks = [{"partition": p, "buckets": buckets, "bytes": p["bytes"]} for p in stage.partitions]
        spread = [result["windows"] for result in stage.map("windows", tasks)]
        repeated = stage.map(
            "repeats",
            [
                {"bucket": b, "windows": exchange.only(spread, b), "partitions": len(stage.partitions)}
                for b in exchange.filled(spread)
            ],
        )
        return {"repeated": exchange.save(stage.folder, "repeated", [result["repeated"] for result in repeated])}

    def windows(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the hash of every window of every document, spread by hash."""
        from pipeline.kernels.minhash import windows

        first = 0
        with exchange.Spread(
            work.path("windows.arrow"), WINDOWS, task["buckets"], sort_by=["key"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], ["text"], None, work):
                keys, offsets = windows(*string_buffers(batch.column("text")), ngram=self.min_units)
                count = np.diff(offsets)
                address = removal.addresses(task["partition"]["index"], first, len(batch))
                place = np.arange(len(keys)) - np.repeat(offsets[:-1], count)
                columns = [keys, np.repeat(address, count), place.astype(np.uint32)]
                rows = pa.table([pa.array(column) for column in columns], schema=WINDOWS)
                spread.add(rows, exchange.bucket_of(keys, task["buckets"]))
                first += len(batch)
        return {"windows": spread.index}

    def repeats(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: every occurrence of every window that repeats, spread by partition."""
        least = self._first_of_split_windows(task, work)
        with exchange.Spread(
            work.path("repeated.arrow"), REPEATED, task["partitions"], memory_bytes=work.memory_bytes
        ) as spread:
            for key, address, place in self._sorted(task, work):
                work.progress(len(key))
                starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
                count = np.diff(np.r_[starts, len(key)])
                group = np.repeat(np.arange(len(starts)), count)
                first = np.zeros(len(key), bool)
                first[starts] = True
                several = count[group] > 1
                for edge in (0, len(key) - 1):
                    if int(key[edge]) in least:  # goes on in another table
                        here = key == key[edge]
                        several |= here
                        first &= ~here
                        where = least[int(key[edge])]
                        first |= here & (address == np.uint64(where[0])) & (place == where[1])
                at = np.flatnonzero(several)
                partition, row = removal.split(address[at])
                rows = [pa.array(row), pa.array(place[at]), pa.array(first[at])]
                spread.add(pa.table(rows, schema=REPEATED), partition)
        return {"repeated": spread.index}

    def _sorted(self, task: dict[str, Any], work: Work) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for table in exchange.merge_sorted(
            task["windows"], task["bucket"], WINDOWS, "key", memory_bytes=work.memory_bytes
        ):
            key, address, place = (table.column(name).to_numpy() for name in WINDOWS.names)
            order = np.lexsort((place, address, key))
            yield key[order], address[order], place[order]

    def _first_of_split_windows(self, task: dict[str, Any], work: Work) -> dict[int, tuple[int, int]]:
        """The first (address, place) of windows so frequent that no single table holds them."""
        least: dict[int, tuple[int, int]] = {}
        if exchange.bucket_bytes(task["windows"], task["bucket"]) * 3 <= work.memory_bytes:
            return least
        before: tuple[int, tuple[int, int]] | None = None
        for key, address, place in self._sorted(task, work):
            head = int(key[0]), (int(address[0]), int(place[0]))
            if before is not None and before[0] == head[0]:
                least[head[0]] = min(least.get(head[0], before[1]), before[1], head[1])
            last = int(np.searchsorted(key, key[-1]))
            before = int(key[-1]), (int(address[last]), int(place[last]))
        return least

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table | None:
        table = exchange.collect(exchange.load(decided["repeated"], partition), partition, REPEATED)
        return table.sort_by([("row", "ascending"), ("place", "ascending")]) if table.num_rows else None

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        from pipeline.kernels.minhash import cut_spans, unit_spans

        if decisions is None or len(docs) == 0:
            return docs.batch, None
        rows = decisions.column("row").to_numpy()
        begin, end = np.searchsorted(rows, [first_row, first_row + len(docs)])
        if begin == end:
            return docs.batch, None
        here = decisions.slice(begin, end - begin).combine_chunks()
        first = here.column("first").to_numpy().astype(bool) if self.keep == "first" else np.zeros(len(here), bool)
        offsets, data = docs.text_buffers()
        starts, units = unit_spans(offsets, data)
        text_offsets, text, cut = cut_spans(
            offsets,
            data,
            starts,
            units,
            rows[begin:end] - first_row,
            here.column("place").to_numpy().astype(np.int64),
            first,
            self.min_units,
        )
        if not cut.any():
            return docs.batch, None
        left = pa.LargeStringArray.from_buffers(len(docs), pa.py_buffer(text_offsets), pa.py_buffer(text))
        batch = removal.set_column(docs.batch, "text", left, docs.batch.schema.field("text"))
        verdict = Verdict.keep(len(docs))
        lengths = pc.utf8_length(left).to_numpy(zero_copy_only=False)
        empty = (cut > 0) & (cut == np.diff(units))
        short = (cut > 0) & (lengths < self.min_chars) & ~empty
        verdict.reason[short], verdict.reason[empty] = "substring_short", "substring_empty"
        verdict.score[short | empty] = lengths[short | empty]
        verdict.threshold[short] = self.min_chars
        verdict.threshold[empty] = math.nan
        return batch, verdict
