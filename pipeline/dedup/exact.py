"""Exact duplicates of whole texts, by a 128-bit content hash of the raw or the normalised text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster import storage
from pipeline import exchange
from pipeline.dedup import index as indexing
from pipeline.dedup import keep as keeping
from pipeline.dedup import removal
from pipeline.step import Corpus, Documents, Verdict, Work, string_buffers

if TYPE_CHECKING:
    from pipeline.run import StageRun


_NEW = 1 << 40
"""The `snapshot` of documents that are in no index yet: after all others."""

INDEXED = pa.schema([pa.field(name, pa.uint64()) for name in ("key", "low", "address", "id_high", "id_low")])
"""What an index keeps of a document."""


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
    index: str | None = Field(
        None, description="folder of an index: the documents in it stay, and what stays here joins them"
    )
    snapshot: str | None = Field(
        None,
        description="name of these documents in the index; a rerun adds nothing, a changed recipe replaces the newest",
    )
    alarm_share: float = Field(0.75, gt=0, le=1, description="warn when a source loses more than this share")

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())
        indexing.check_names(self.index, self.snapshot, self.step_name())
        self.earlier()

    def input_identity(self) -> list[Any]:
        return [snapshot["name"] for snapshot in self.earlier()]

    def earlier(self) -> list[dict[str, Any]]:
        """The snapshots that are in the index before this one."""
        if self.index is None or self.snapshot is None:
            return []
        return indexing.earlier(storage.absolute(self.index), self.snapshot, self._index_settings())

    def _index_settings(self) -> dict[str, Any]:
        return {"compare": self.compare, "text": self.text, "scope": self.scope}

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
        fields = [*((name, pa.uint64()) for name in ("key", "low", "address", "source")), ("weight", pa.int64())]
        fields.append(("snapshot", pa.int64()))
        return pa.schema([*(pa.field(*f) for f in fields), *keeping.rank_schema(self.keep)])

    def decide(self, stage: StageRun) -> dict[str, Any]:
        size = 8 * len(self._schema().names) * stage.rows
        buckets = stage.fix("buckets", exchange.buckets_for(size, stage.memory_bytes, at_least=stage.workers))
        tasks = [{"partition": p, "buckets": buckets, "bytes": p["bytes"]} for p in stage.partitions]
        hashed = stage.map("hashes", tasks)
        spread = [result["rows"] for result in hashed]
        earlier = self.earlier()
        earlier = earlier[: stage.fix("earlier_snapshots", len(earlier))]
        reduce = [
            {
                "bucket": b,
                "rows": exchange.only(spread, b),
                "partitions": len(stage.partitions),
                "earlier": [indexing.cut(snapshot, b, buckets) for snapshot in earlier],
                "number": len(earlier),
            }
            for b in exchange.filled(spread)
        ]
        chosen = stage.map("choose", reduce)
        if self.index is not None:
            folder = storage.absolute(self.index)
            added = [{"bands": r["added"], "records": None} for r in chosen]
            indexing.commit(stage, folder, str(self.snapshot), len(earlier), self._index_settings(), added)
        name = self.step_name() if self.compare == "text" else "dedup.url"
        account = removal.account(
            name, [r["sources"] for r in hashed], [r["removed"] for r in chosen], self.alarm_share
        )
        return {"decisions": exchange.save(stage.folder, "decisions", [r["decisions"] for r in chosen]), **account}

    def hashes(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the content hash, rank and address of every document of a partition, spread by hash."""
        columns = sorted(
            {*keeping.columns(self.keep, self.quality), self.compare, *([self.scope] if self.scope else [])}
        )
        first = 0
        sources: dict[str, int] = {}
        with exchange.Spread(
            work.path("hashes.arrow"), self._schema(), task["buckets"], sort_by=["key"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], columns, self.size_column, work):
                address = removal.addresses(task["partition"]["index"], first, len(batch))
                keys = (
                    self._keys(batch.column("text"))
                    if self.compare == "text"
                    else url_keys(batch, address, self.snapshot or "")
                )
                if self.scope:
                    keys[:, 0] ^= removal.scope_salt(batch, self.scope)
                ranks = keeping.ranks(batch, self.keep, self.quality, self.sources)
                weight = removal.weights(batch, self.size_column)
                rows = [keys[:, 0], keys[:, 1], address, removal.source_hashes(batch), weight]
                rows += [np.full(len(batch), _NEW), *ranks]
                spread.add(
                    pa.table([pa.array(column) for column in rows], schema=self._schema()),
                    exchange.bucket_of(keys[:, 0], task["buckets"]),
                )
                first += len(batch)
                removal.count_sources(batch, sources)
        return {"rows": spread.index, "sources": sources}

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: of each group of equal hashes the first by rank stays; decisions are spread by partition."""
        best = self._best_of_split_groups(self._groups(task, work))
        removed: dict[str, int] = {}
        memory = work.memory_bytes // (1 if self.index is None else 2)
        spread = exchange.Spread(
            work.path("decisions.arrow"), removal.DECISION, task["partitions"], memory_bytes=memory
        )
        added = exchange.Spread(
            self._added_path(task, work), INDEXED, indexing.BUCKETS, sort_by=["key"], memory_bytes=memory
        )
        with spread, added:
            for rows in self._groups(task, work):
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
                old = indexing.is_old(rows["address"])
                removed = removal.sum_counts([removed, removal.removed_by_source(rows["source"][~stays & ~old])])
                if self.index is not None:
                    self._add(added, task, {name: values[stays & ~old] for name, values in rows.items()})
                at = np.flatnonzero((counts[group] > 1) & ~old)
                partition, row = removal.split(rows["address"][at])
                match = keeping.id_bytes(kept["id_high"][group[at]], kept["id_low"][group[at]])
                ones = np.ones(len(at), np.float32)
                spread.add(removal.decision_table(row, ~stays[at], match, ones, size[group[at]]), partition)
        return {"decisions": spread.index, "removed": removed, "added": added.index}

    def _groups(self, task: dict[str, Any], work: Work) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a bucket in order of hash and rank, those of the index that have the same hash among them."""
        names = self._schema().names
        for table in exchange.merge_sorted(
            task["rows"], task["bucket"], self._schema(), "key", memory_bytes=work.memory_bytes
        ):
            parts = [{name: table.column(name).to_numpy() for name in names}]
            for old in indexing.matches(task["earlier"], parts[0]["key"]):
                known = {name: old.column(name).to_numpy() for name in INDEXED.names}
                known["snapshot"] = indexing.snapshot_of(known["address"])
                nothing = np.zeros(len(old), np.int64)
                parts.append({name: known.get(name, nothing).astype(parts[0][name].dtype) for name in names})
            rows = {name: np.concatenate([part[name] for part in parts]) for name in names}
            ranks = (rows[name] for name in reversed(self._order()))
            order = np.lexsort((rows["address"], *ranks, rows["low"], rows["key"]))
            yield {name: values[order] for name, values in rows.items()}

    def _added_path(self, task: dict[str, Any], work: Work) -> str:
        if self.index is None:
            return work.path("added.arrow")  # never written
        folder = indexing.part_folder(storage.absolute(self.index), task["number"], str(self.snapshot))
        return storage.join(folder, f"keys-{work.attempt}.arrow")

    def _add(self, added: exchange.Spread, task: dict[str, Any], rows: dict[str, np.ndarray]) -> None:
        """The documents that stay, one of each group, for later snapshots."""
        serial = (task["bucket"] << 30) + added.rows + np.arange(len(rows["key"]))
        columns = [
            rows["key"],
            rows["low"],
            indexing.old_address(task["number"], serial),
            rows["id_high"],
            rows["id_low"],
        ]
        table = pa.table([pa.array(column) for column in columns], schema=INDEXED)
        added.add(table, exchange.bucket_of(rows["key"], indexing.BUCKETS))

    def _order(self) -> list[str]:
        return ["snapshot", *(field.name for field in keeping.rank_schema(self.keep))]

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

    decisions = staticmethod(removal.decisions)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs, first_row, decisions, reason="exact_duplicate", threshold=math.nan, size_column=self.size_column
        )


def url_keys(batch: pa.RecordBatch, address: np.ndarray, snapshot: str = "") -> np.ndarray:
    """128 bits (uint64 [n, 2]) of each URL's `page_key`; a document without a URL has its own, in every snapshot."""
    from pipeline.crawl.url import page_key
    from pipeline.kernels.hashing import content_hashes

    names = [
        page_key(url) if url else f"none {place} {snapshot}"
        for url, place in zip(batch["url"].to_pylist(), address, strict=True)
    ]
    return content_hashes(*string_buffers(pa.array(names, pa.large_string())))
