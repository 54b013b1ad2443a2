"""Exact duplicates of whole texts, by a 128-bit content hash of the raw or the normalised text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline import exchange
from pipeline.dedup import keep as keeping
from pipeline.dedup import removal
from pipeline.step import Corpus, Documents, Verdict, Work, string_buffers

if TYPE_CHECKING:
    from pipeline.run import StageRun


class Exact(Corpus):
    """Of documents with equal text one stays; the others are removed as `exact_duplicate` with its doc_id.

    Every document is compared by 128 bits of SipHash, short and empty ones too: two of 10^12 distinct texts meet by
    chance with a probability below 10^-14.
    """

    text: Literal["raw", "normalised"] = Field(
        "raw", description="raw: equal bytes; normalised: equal words, whatever their case, spacing and punctuation"
    )
    compare: Literal["text", "url"] = Field("text", description="url: what dedup.url does; text is then not looked at")
    keep: list[keeping.Policy] = Field(
        default=["newest", "longest"], description="which copy stays, in order of importance; then the least doc_id"
    )
    quality: str | None = Field(None, description="score column for keep: [quality]; the highest stays")
    sources: list[str] = Field(default=[], description="for keep: [source]; most preferred first")
    scope: str | None = Field(None, description="compare only documents with equal values of this column")
    size_column: str | None = Field("cluster_size", description="column for the number of copies a document stands for")

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())

    def warm(self, artifacts: Any) -> None:
        self._keys(pa.array(["warm"], pa.large_string()))

    def _keys(self, text: pa.Array) -> np.ndarray:
        """128 bits (uint64 [n, 2]) by which texts are compared."""
        from pipeline.kernels.hashing import content_hashes

        offsets, data = string_buffers(text)
        if self.text == "raw":
            return content_hashes(offsets, data)
        from pipeline.kernels.line_keys import normalised_texts

        words, letters = normalised_texts(offsets, data)
        no_words = (words[1:] == words[:-1])[:, None]
        return np.where(no_words, content_hashes(offsets, data), content_hashes(words, letters))

    def _schema(self) -> pa.Schema:
        fields = [("key", pa.uint64()), ("low", pa.uint64()), ("address", pa.uint64()), ("weight", pa.int64())]
        return pa.schema([*(pa.field(*f) for f in fields), *keeping.rank_schema(self.keep)])

    def decide(self, stage: StageRun) -> dict[str, Any]:
        size = 8 * len(self._schema().names) * stage.rows
        buckets = stage.fix("buckets", exchange.buckets_for(size, stage.memory_bytes, at_least=stage.workers))
        tasks = [{"partition": p, "buckets": buckets, "bytes": p["bytes"]} for p in stage.partitions]
        spread = [result["rows"] for result in stage.map("hashes", tasks)]
        reduce = [
            {"bucket": b, "rows": exchange.only(spread, b), "partitions": len(stage.partitions)}
            for b in exchange.filled(spread)
        ]
        decisions = [result["decisions"] for result in stage.map("choose", reduce)]
        return {"decisions": exchange.save(stage.folder, "decisions", decisions)}

    def hashes(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the content hash, rank and address of every document of a partition, spread by hash."""
        columns = sorted(
            {*keeping.columns(self.keep, self.quality), self.compare, *([self.scope] if self.scope else [])}
        )
        first = 0
        with exchange.Spread(
            work.path("hashes.arrow"), self._schema(), task["buckets"], sort_by=["key"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], columns, self.size_column, work):
                address = removal.addresses(task["partition"]["index"], first, len(batch))
                keys = self._keys(batch.column("text")) if self.compare == "text" else url_keys(batch, address)
                if self.scope:
                    keys[:, 0] ^= removal.scope_salt(batch, self.scope)
                ranks = keeping.ranks(batch, self.keep, self.quality, self.sources)
                weight = removal.weights(batch, self.size_column)
                rows = [keys[:, 0], keys[:, 1], address, weight, *ranks]
                spread.add(
                    pa.table([pa.array(column) for column in rows], schema=self._schema()),
                    exchange.bucket_of(keys[:, 0], task["buckets"]),
                )
                first += len(batch)
        return {"rows": spread.index}

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: of each group of equal hashes the first by rank stays; decisions are spread by partition."""

        def tables() -> Iterator[dict[str, np.ndarray]]:
            for table in exchange.merge_sorted(
                task["rows"], task["bucket"], self._schema(), "key", memory_bytes=work.memory_bytes
            ):
                rows = {name: table.column(name).to_numpy() for name in table.column_names}
                order = np.lexsort(
                    (rows["address"], *(rows[n] for n in reversed(self._order())), rows["low"], rows["key"])
                )
                yield {name: values[order] for name, values in rows.items()}

        best = self._best_of_split_groups(tables())
        with exchange.Spread(
            work.path("decisions.arrow"), removal.DECISION, task["partitions"], memory_bytes=work.memory_bytes
        ) as spread:
            for rows in tables():
                work.progress(len(rows["key"]))
                changed = (rows["key"][1:] != rows["key"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
                starts = np.flatnonzero(np.r_[True, changed])
                counts = np.diff(np.r_[starts, len(rows["key"])])
                group = np.repeat(np.arange(len(starts)), counts)
                size = np.add.reduceat(rows["weight"], starts)
                kept = {name: rows[name][starts] for name in ("address", "id_high", "id_low")}
                for g in range(len(starts)) if best else ():
                    whole = best.get((int(rows["key"][starts[g]]), int(rows["low"][starts[g]])))
                    if whole:
                        kept["address"][g], kept["id_high"][g], kept["id_low"][g], size[g] = whole[-4:]
                        counts[g] = 2
                stays = rows["address"] == kept["address"][group]
                at = np.flatnonzero(counts[group] > 1)
                partition, row = removal.split(rows["address"][at])
                match = keeping.id_bytes(kept["id_high"][group[at]], kept["id_low"][group[at]])
                ones = np.ones(len(at), np.float32)
                spread.add(removal.decision_table(row, ~stays[at], match, ones, size[group[at]]), partition)
        return {"decisions": spread.index}

    def _order(self) -> list[str]:
        return [field.name for field in keeping.rank_schema(self.keep)]

    def _best_of_split_groups(self, tables: Iterator[dict[str, np.ndarray]]) -> dict[tuple[int, int], tuple[int, ...]]:
        """Groups that no single table holds whole: (key, low) -> (…rank, address, id_high, id_low, size)."""
        names = [*self._order(), "address", "id_high", "id_low"]
        best: dict[tuple[int, int], tuple[int, ...]] = {}
        before: dict[str, np.ndarray] | None = None

        def take(rows: dict[str, np.ndarray], key: int) -> None:
            for i in np.flatnonzero(rows["key"] == key).tolist():
                group = (key, int(rows["low"][i]))
                rank = tuple(int(rows[name][i]) for name in names)
                old = best.get(group)
                size = int(rows["weight"][i]) + (old[-1] if old else 0)
                best[group] = (*(min(old[:-1], rank) if old else rank), size)

        for rows in tables:
            if before is not None and before["key"][-1] == rows["key"][0]:
                key = int(rows["key"][0])
                if not any(group[0] == key for group in best):
                    take(before, key)
                take(rows, key)
            before = rows
        return best

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table | None:
        return removal.read_saved(decided["decisions"], partition)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs, first_row, decisions, reason="exact_duplicate", threshold=math.nan, size_column=self.size_column
        )


def url_keys(batch: pa.RecordBatch, address: np.ndarray) -> np.ndarray:
    """128 bits (uint64 [n, 2]) of each URL's `page_key`; a document without a URL gets its own address."""
    from pipeline.crawl.url import page_key
    from pipeline.kernels.hashing import content_hashes

    names = [
        page_key(url) if url else f"none {place}" for url, place in zip(batch["url"].to_pylist(), address, strict=True)
    ]
    return content_hashes(*string_buffers(pa.array(names, pa.large_string())))
