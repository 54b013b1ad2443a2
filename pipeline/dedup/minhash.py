"""Near-duplicates: MinHash signatures, bands, connected components, exact Jaccard against the document that stays.

Broder 1997; LSH bands as in FineWeb (arXiv 2406.17557: word 5-grams, 14 bands of 8 rows). Five phases:

    signatures   map      text → one 64-bit key per band and document, spread by key
    edges        reduce   documents of one key → edges
    components   one task or rounds of many (`dedup/connect.py`) → each clustered document and its component
    members      map      clustered documents → rank, and their shingles (or signature), spread by component
    choose       reduce   who stays, who is compared with whom; decisions spread by partition
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cluster import storage
from cluster.errors import RecipeError
from pipeline import exchange
from pipeline.dedup import choose as choosing
from pipeline.dedup import connect, removal
from pipeline.dedup import index as indexing
from pipeline.dedup import keep as keeping
from pipeline.dedup.banding import best_banding
from pipeline.step import Corpus, Documents, Verdict, Work, string_buffers

if TYPE_CHECKING:
    from pipeline.run import StageRun

BANDS = pa.schema([pa.field("key", pa.uint64(), nullable=False), pa.field("address", pa.uint64(), nullable=False)])
SHINGLES = pa.schema([pa.field("shingle", pa.uint32(), nullable=False)])

TEMPLATE_SAMPLE = 20_000
"""Documents from which the shingles of templates are found."""


def _sampled(batch: pa.RecordBatch, share: float) -> np.ndarray:
    """Which documents (bool [n]) are in a sample of this share, by their doc_id."""
    high, low = keeping.id_halves(batch.column("doc_id"))
    mixed = (high ^ low) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(32)).astype(np.float64) < share * 2.0**32


class Minhash(Corpus):
    """Of documents that share most of their shingles one stays; the others are removed as `near_duplicate`.

    With `verify` every removed document has at least that exact Jaccard similarity to the document named as its
    match, which stays; chains of ever less similar documents are not removed whole. Without it all of a connected
    component but one go, as in FineWeb, and the similarity is an estimate. Documents of fewer than `ngram` words
    are duplicates only when all their words are equal. The result does not depend on partitions, order or workers.
    """

    ngram: int = Field(5, ge=1, description="units per shingle: words, or characters where no spaces are written")
    bands: int = Field(14, ge=1, description="bands; a pair is compared when all rows of one band agree")
    rows: int = Field(8, ge=1, description="hashes per band: P(compared | J) = 1 - (1 - J^rows)^bands")
    threshold: float | None = Field(None, gt=0, lt=1, description="choose bands and rows for this similarity instead")
    hashes: int = Field(128, ge=2, description="hash functions to choose bands and rows from, with threshold")
    shingles: Literal["auto", "characters"] = Field(
        "auto", description="auto: words, but characters of Han, Kana, Thai…; characters: always characters"
    )
    verify: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="remove only at this exact Jaccard similarity to the one that stays; null: no check",
    )
    template_share: float | None = Field(
        None, gt=0, lt=1, description="shingles in more than this share of a sample of documents do not count in verify"
    )
    compare: int = Field(256, ge=1, description="kept documents of one component that another is compared with at most")
    keep: list[keeping.Policy] = Field(
        default=["newest", "longest"], description="which copy stays, in order of importance; then the least doc_id"
    )
    quality: str | None = Field(None, description="score column for keep: [quality]; the highest stays")
    sources: list[str] = Field(default=[], description="for keep: [source]; most preferred first")
    scope: str | None = Field(None, description="compare only documents with equal values of this column")
    size_column: str | None = Field("cluster_size", description="column for the number of documents one stands for")
    index: str | None = Field(
        None, description="folder of an index: the documents in it stay, and what stays here joins them"
    )
    snapshot: str | None = Field(
        None,
        description="name of these documents in the index; a rerun adds nothing, a changed recipe replaces the newest",
    )
    alarm_share: float = Field(0.75, gt=0, le=1, description="warn when a source loses more than this share")
    seed: int = Field(1, ge=0, description="of the permutations; 1 is datasketch's default")

    @model_validator(mode="before")
    @classmethod
    def _choose_bands(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("threshold"), float):
            return fields
        bands, rows = best_banding(fields["threshold"], int(fields.get("hashes", 128)))
        chosen = {"bands": bands, "rows": rows}
        other = {name: fields[name] for name in chosen if name in fields and fields[name] != chosen[name]}
        if other:
            raise ValueError(f"threshold {fields['threshold']} chooses {chosen}; leave out {other}, or the threshold")
        return {**fields, **chosen}

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())
        if self.template_share is not None and (self.verify is None or self.index is not None):
            raise RecipeError(f"{self.step_name()}: template_share needs verify, and goes with no index: shares change")
        indexing.check_names(self.index, self.snapshot, self.step_name())
        self._earlier()

    def input_identity(self) -> list[Any]:
        return [snapshot["name"] for snapshot in self._earlier()]

    def _earlier(self) -> list[dict[str, Any]]:
        if self.index is None or self.snapshot is None:
            return []
        return indexing.earlier(storage.absolute(self.index), self.snapshot, self._index_settings())

    def _index_settings(self) -> dict[str, Any]:
        """What must be equal for keys and records to be comparable."""
        names = ("ngram", "bands", "rows", "shingles", "seed", "scope", "keep")
        return {**{name: getattr(self, name) for name in names}, "verified": self.verify is not None}

    def warm(self, artifacts: Any) -> None:
        from pipeline.kernels.components import Cover, group_edges
        from pipeline.kernels.minhash import band_keys

        docs = pa.array(["a few words to compile the kernels with", ""], pa.large_string())
        signature, _, whole = self._signatures(docs)
        band_keys(signature, self.bands, self.rows, whole)
        group_edges(whole, whole)
        Cover(2, self.verify, self.compare, 1).add(whole, *self._payload(docs), whole[:, None])

    def _signatures(self, text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(signature uint32 [n, bands * rows], True where short, 64-bit hash of a short document [n])."""
        from pipeline.kernels.hashing import content_hashes
        from pipeline.kernels.minhash import signatures

        offsets, data = string_buffers(text)
        signature, count, whole = signatures(
            offsets,
            data,
            ngram=self.ngram,
            count=self.bands * self.rows,
            seed=self.seed,
            characters=self.shingles == "characters",
        )
        if (count < 0).any():
            whole[count < 0] = content_hashes(offsets, data)[count < 0, 0]
        return signature, count <= 0, whole

    def decide(self, stage: StageRun) -> dict[str, Any]:
        partitions = len(stage.partitions)
        band_bytes = stage.rows * self.bands * 16
        buckets = stage.fix("buckets", exchange.buckets_for(band_bytes, stage.memory_bytes, at_least=stage.workers))
        share = min(1.0, TEMPLATE_SAMPLE / max(1, stage.rows))
        tasks = [{"partition": p, "buckets": buckets, "sample": share, "bytes": p["bytes"]} for p in stage.partitions]
        signed = stage.map("signatures", tasks)
        templates = None
        if self.template_share is not None:
            sampled = {"sampled": [r["sampled"] for r in signed], "documents": sum(r["sampled_rows"] for r in signed)}
            templates = stage.map("templates", [sampled])[0]["templates"]
        bands = [result["bands"] for result in signed]
        earlier = self._earlier()
        earlier = earlier[: stage.fix("earlier_snapshots", len(earlier))]
        joined = stage.map(
            "edges",
            [
                {
                    "bucket": b,
                    "bands": exchange.only(bands, b),
                    "earlier": [indexing.cut(snapshot, b, buckets) for snapshot in earlier],
                }
                for b in exchange.filled(bands)
            ],
        )
        labels = connect.components(stage, [result["edges"] for result in joined], partitions + bool(earlier))

        clustered = sum(index["rows"] for index in labels)
        text_bytes = sum(p["bytes"] for p in stage.partitions)
        payload = text_bytes * clustered // max(1, stage.rows) + 448 * clustered
        buckets = stage.fix("clusters", exchange.buckets_for(payload, stage.memory_bytes, at_least=stage.workers))
        common = {"buckets": buckets, "snapshot": len(earlier), "templates": templates}
        tasks = [
            {"partition": p, "labels": exchange.only(labels, p["index"]), "bytes": p["bytes"], **common}
            for p in stage.partitions
        ]
        members = stage.map("members", tasks)
        touched = [result["touched"] for result in joined]
        old = {"touched": touched, "labels": exchange.only(labels, partitions), "partitions": partitions}
        members += stage.map("old_members", [{"earlier": s, **old, **common} for s in earlier])
        spread = [result["members"] for result in members]
        chosen = stage.map(
            "choose",
            [
                {"bucket": b, "members": exchange.only(spread, b), "partitions": partitions}
                for b in exchange.filled(spread)
            ],
        )
        decisions = [result["decisions"] for result in chosen]
        if self.index is not None:
            self._publish(stage, signed, decisions, len(earlier))
        account = removal.account(
            self.step_name(), [r["sources"] for r in signed], [r["removed"] for r in chosen], self.alarm_share
        )
        return {"decisions": exchange.save(stage.folder, "decisions", decisions), **account}

    def _publish(
        self, stage: StageRun, signed: list[dict[str, Any]], decisions: list[dict[str, Any]], number: int
    ) -> None:
        """Add what stays to the index, when all of it is decided."""
        folder = storage.absolute(str(self.index))
        first = [0, *itertools.accumulate(p["rows"] for p in stage.partitions)]
        published = stage.map(
            "publish",
            [
                {
                    "partition": p["index"],
                    "serial": first[i],
                    "records": signed[i]["records"],
                    "decisions": exchange.only(decisions, p["index"]),
                    "number": number,
                    "name": self.snapshot,
                    "index": folder,
                    "bytes": p["bytes"],
                }
                for i, p in enumerate(stage.partitions)
            ],
        )
        indexing.commit(stage, folder, str(self.snapshot), number, self._index_settings(), published)

    def publish(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the documents of a partition that stay go into the index."""
        decisions = removal.read(task["decisions"], task["partition"])
        gone = np.zeros(0, np.int64)
        if decisions is not None:
            gone = decisions.filter(decisions.column("removed")).column("row").to_numpy()
        return indexing.publish(task, work, gone)

    def signatures(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the band keys of every document of a partition, spread by key."""
        columns = {"text", "source", "doc_id", *([self.scope] if self.scope else [])}
        if self.index is not None:
            columns |= set(keeping.columns(self.keep, self.quality))
        first = 0
        sources: dict[str, int] = {}
        memory = work.memory_bytes // (1 if self.index is None else 2)
        bands = exchange.Spread(work.path("bands.arrow"), BANDS, task["buckets"], sort_by=["key"], memory_bytes=memory)
        records = exchange.Spread(work.path("records.arrow"), removal.RECORDS, 1, memory_bytes=memory)
        sampled = exchange.Spread(work.path("sampled.arrow"), SHINGLES, 1, memory_bytes=memory)
        sampled_rows = 0
        with bands, records, sampled:
            for batch in removal.batches(task["partition"], columns, None, work):
                keys = self.band_keys_of(batch)
                row, band = np.nonzero(keys)
                address = removal.addresses(task["partition"]["index"], first, len(batch))
                key = keys[row, band]
                rows = pa.table([pa.array(key), pa.array(address[row])], schema=BANDS)
                bands.add(rows, exchange.bucket_of(key, task["buckets"]))
                if self.index is not None:
                    packed = indexing.pack(
                        keeping.ranks(batch, self.keep, self.quality, self.sources),
                        [of_one[of_one != 0] for of_one in keys],
                        *self._payload(batch.column("text")),
                    )
                    numbers = np.arange(first, first + len(batch))
                    records.add_run(
                        pa.table([pa.array(numbers), pa.array(packed, pa.large_binary())], schema=removal.RECORDS), 0
                    )
                if self.template_share is not None:
                    picked = batch.filter(pa.array(_sampled(batch, task["sample"])))
                    sampled_rows += len(picked)
                    sampled.add_run(pa.table([self._payload(picked.column("text"))[1]], schema=SHINGLES), 0)
                first += len(batch)
                removal.count_sources(batch, sources)
        return {
            "bands": bands.index,
            "sources": sources,
            "records": records.index,
            "sampled": sampled.index,
            "sampled_rows": sampled_rows,
        }

    def templates(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """One task: the shingles that too many of the sampled documents have."""
        values = exchange.collect(task["sampled"], 0, SHINGLES).column("shingle").to_numpy()
        shingle, count = np.unique(values, return_counts=True)
        often = shingle[count > float(self.template_share or 1) * task["documents"]]
        with exchange.Spread(work.path("templates.arrow"), SHINGLES, 1) as spread:
            spread.add_run(pa.table([pa.array(often)], schema=SHINGLES), 0)
        return {"templates": spread.index}

    def band_keys_of(self, batch: pa.RecordBatch) -> np.ndarray:
        """uint64 [n, bands]: the keys by which documents meet; a short document has one, and zeros behind it."""
        from pipeline.kernels.hashing import mix64
        from pipeline.kernels.minhash import band_keys

        signature, short, whole = self._signatures(batch.column("text"))
        salt = removal.scope_salt(batch, self.scope)
        keys = band_keys(signature, self.bands, self.rows, salt)
        keys[short] = 0
        keys[short, 0] = [mix64(key) for key in whole[short] ^ salt[short] * np.uint64(3)]
        return keys

    def edges(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: edges between the documents that share a band key, as few as join them."""
        from pipeline.kernels.components import group_edges, stars

        last: tuple[int, int] | None = None
        touched = exchange.Spread(work.path("touched.arrow"), indexing.TOUCHED, 1, memory_bytes=work.memory_bytes // 4)
        with connect.spread_edges(work) as spread, touched:
            for table in exchange.merge_sorted(
                task["bands"], task["bucket"], BANDS, "key", memory_bytes=work.memory_bytes
            ):
                keys, address = table.column("key").to_numpy(), table.column("address").to_numpy()
                if last is not None and last[0] == keys[0]:  # a key larger than a table goes on
                    connect.add_edges(spread, address[:1], np.array([last[1]], np.uint64))
                last = int(keys[-1]), int(address[-1])
                for old in indexing.matches(task["earlier"], keys):
                    touched.add_run(old.select(indexing.TOUCHED.names), 0)
                    keys = np.concatenate([keys, old.column("key").to_numpy()])
                    address = np.concatenate([address, old.column("address").to_numpy()])
                if len(keys) > table.num_rows:
                    order = np.argsort(keys)
                    keys, address = keys[order], address[order]
                connect.add_edges(spread, *stars(*group_edges(keys, address)))
                work.progress(table.num_rows)
        return {"edges": spread.index, "touched": touched.index}

    # phases of the search for components: all edges in one task, or in rounds
    components = staticmethod(connect.in_memory)
    both_ends = staticmethod(connect.both_ends)
    large_star = staticmethod(connect.large_star)
    small_star = staticmethod(connect.small_star)
    label = staticmethod(connect.label)

    def _payload(self, text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """What documents are compared by: (offsets [n + 1], uint32): distinct shingles sorted, or the signature."""
        from pipeline.kernels.hashing import content_hashes
        from pipeline.kernels.minhash import shingle_sets

        if self.verify is None:
            signature = self._signatures(text)[0]
            return np.arange(len(text) + 1, dtype=np.int64) * signature.shape[1], signature.ravel()
        offsets, data = string_buffers(text)
        exact = content_hashes(offsets, data)[:, 0]
        return shingle_sets(offsets, data, exact, ngram=self.ngram, characters=self.shingles == "characters")

    def members(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: rank and shingles of the clustered documents of a partition, spread by component."""
        schema = choosing.member_schema(self.keep, self._bands_compared())
        labels = exchange.collect(task["labels"], task["partition"]["index"], connect.LABELS)
        _, rows = removal.split(labels.column("address").to_numpy())
        order = np.argsort(rows)
        rows, roots = rows[order], labels.column("root").to_numpy()[order]
        columns = {*keeping.columns(self.keep, self.quality), "text", *([self.scope] if self.scope else [])}
        templates = np.zeros(0, np.uint32)
        if task["templates"] is not None:
            templates = exchange.collect([task["templates"]], 0, SHINGLES).column("shingle").to_numpy()
        first = 0
        with exchange.Spread(
            work.path("members.arrow"), schema, task["buckets"], sort_by=["root"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], columns, self.size_column, work) if len(rows) else ():
                begin, end = np.searchsorted(rows, [first, first + len(batch)])
                at, root = rows[begin:end] - first, roots[begin:end]
                address = removal.addresses(task["partition"]["index"], first, len(batch))[at]
                first += len(batch)
                if begin == end:
                    continue
                docs = batch.take(pa.array(at))
                offsets, values = self._payload(docs.column("text"))
                if len(templates):
                    stays = ~np.isin(values, templates)
                    offsets, values = np.r_[0, np.cumsum(stays)][offsets], values[stays]
                arrays = [
                    pa.array(root),
                    pa.array(address),
                    pa.array(removal.weights(docs, self.size_column)),
                    pa.array(removal.source_hashes(docs)),
                    pa.array(np.full(len(docs), task["snapshot"])),
                    *(pa.array(rank) for rank in keeping.ranks(docs, self.keep, self.quality, self.sources)),
                    *self._bands_column(self.band_keys_of(docs) if self.index is not None else None),
                    pa.array(np.diff(offsets)),
                    pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
                ]
                spread.add(pa.table(arrays, schema=schema), connect.bucket_of_root(root, task["buckets"]))
        return {"members": spread.index}

    def _bands_compared(self) -> int:
        """With an index documents must share a band themselves: components grow with later snapshots, bands do not."""
        return self.bands if self.index is not None else 0

    def _bands_column(self, keys: np.ndarray | None) -> list[pa.Array]:
        return [] if keys is None else [pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), self.bands)]

    def old_members(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the documents of one earlier snapshot that share a band with new ones, from the index."""
        schema = choosing.member_schema(self.keep, self._bands_compared())
        snapshot = task["earlier"]
        labels = exchange.collect(task["labels"], task["partitions"], connect.LABELS)
        root = dict(zip(*(labels.column(name).to_pylist() for name in ("address", "root")), strict=True))
        touched = exchange.collect(task["touched"], 0, indexing.TOUCHED)
        mine = indexing.snapshot_of(touched.column("address").to_numpy()) == snapshot["number"]
        with exchange.Spread(
            work.path("old.arrow"), schema, task["buckets"], sort_by=["root"], memory_bytes=work.memory_bytes
        ) as spread:
            found = indexing.records(snapshot, touched.filter(pa.array(mine)))
            while part := list(itertools.islice(found, work.batch_documents)):
                roots = np.array([root[address] for address, _ in part], np.uint64)
                ranks, bands, values = zip(*(indexing.unpack(record) for _, record in part), strict=True)
                table = np.stack(ranks)
                keys = np.zeros((len(part), self.bands), np.uint64)
                for i, of_one in enumerate(bands):
                    keys[i, : len(of_one)] = of_one
                offsets = np.cumsum([0, *map(len, values)])
                arrays = [
                    pa.array(roots),
                    pa.array([address for address, _ in part], pa.uint64()),
                    pa.array(np.zeros(len(part), np.int64)),
                    pa.array(np.zeros(len(part), np.uint64)),
                    pa.array(np.full(len(part), snapshot["number"])),
                    *(pa.array(table[:, i]) for i in range(len(self.keep))),
                    *(pa.array(np.ascontiguousarray(table[:, i]).view(np.uint64)) for i in (-2, -1)),
                    *self._bands_column(keys),
                    pa.array(np.diff(offsets)),
                    pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values))),
                ]
                spread.add(pa.table(arrays, schema=schema), connect.bucket_of_root(roots, task["buckets"]))
                work.progress(len(part))
        return {"members": spread.index}

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: who stays in every component of a bucket, and the decisions, spread by partition."""
        return choosing.choose(
            task, work, keep=self.keep, verify=self.verify, compare=self.compare, bands=self._bands_compared()
        )

    decisions = staticmethod(removal.decisions)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs,
            first_row,
            decisions,
            reason="near_duplicate",
            threshold=math.nan if self.verify is None else self.verify,
            size_column=self.size_column,
        )
