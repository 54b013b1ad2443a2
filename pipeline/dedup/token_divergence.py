"""Near-duplicates by token-level Kullback-Leibler divergence: documents that say the same words equally often.

Order plays no part, so a copy with its sentences moved around is one; shingles would tell the two apart. Phases as in
`dedup/minhash.py`, with token counts in place of shingles:

    signatures   map      text or URL → keys by which documents meet
    edges        reduce   documents of one key → edges
    components   one task or rounds of many → each clustered document and its component (MinHash group)
    members      map      clustered documents → rank and token counts, spread by component
    choose       reduce   who stays, who is compared with whom; decisions spread by partition
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline import exchange
from pipeline.dedup import choose as choosing
from pipeline.dedup import connect, removal
from pipeline.dedup import keep as keeping
from pipeline.dedup.exact import url_keys
from pipeline.dedup.minhash import BANDS, Minhash
from pipeline.filters.kl_divergence import KLDivergence
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun


class TokenDivergence(Corpus):
    """Of documents of one group with nearly equal token distributions one stays; the others go as `token_duplicate`.

    Groups are the connected components of MinHash (`group: minhash`, of short shingles, which moved sentences keep)
    or the documents of one URL (`group: url`). Inside a group a document goes when its symmetric divergence from one
    that stays, (D(p‖q) + D(q‖p)) / 2 in nats, is at most `max_divergence`. Both distributions are smoothed over the
    tokens that either document has: p(t) = (count(t) + smoothing) / (n + smoothing * |union|). Equal counts are at 0;
    4 of 100 words replaced are at 0.09. The ledger has the divergence as the score, and the document that stays
    (the least divergent one) as match_id. Documents without tokens stay. Nothing depends on partitions or order.
    """

    group: Literal["minhash", "url"] = Field("minhash", description="which documents are compared with one another")
    max_divergence: float = Field(0.1, ge=0, description="symmetric divergence up to which a document is a copy, nats")
    smoothing: float = Field(0.1, gt=0, description="count added to every token of the two documents")
    tokens: Literal["words", "tokenizer"] = Field("words", description="words, or tokens of the recipe's tokenizer")
    ngram: int = Field(2, ge=1, description="group: minhash: words per shingle, few, so that order matters little")
    bands: int = Field(14, ge=1, description="group: minhash: bands of the signature")
    rows: int = Field(8, ge=1, description="group: minhash: hashes per band")
    compare: int = Field(256, ge=1, description="kept documents of one group that another is compared with at most")
    keep: list[keeping.Policy] = Field(
        default=["newest", "longest"], description="which copy stays, in order of importance; then the least doc_id"
    )
    quality: str | None = Field(None, description="score column for keep: [quality]; the highest stays")
    sources: list[str] = Field(default=[], description="for keep: [source]; most preferred first")
    scope: str | None = Field(None, description="compare only documents with equal values of this column")
    size_column: str | None = Field("cluster_size", description="column for the number of documents one stands for")

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())

    def needs(self) -> Sequence[str]:
        return ("tokenizer",) if self.tokens == "tokenizer" else ()

    def warm(self, artifacts: Mapping[str, str]) -> None:
        from pipeline.kernels.divergence import symmetric_divergence

        if self.group == "minhash":
            self._minhash().warm(artifacts)
        one = np.zeros(1, np.uint32)
        symmetric_divergence(one, one, one, one, self.smoothing)

    def _minhash(self) -> Minhash:
        return Minhash.model_validate({name: getattr(self, name) for name in ("ngram", "bands", "rows", "scope")})

    def decide(self, stage: StageRun) -> dict[str, Any]:
        bands = self.bands if self.group == "minhash" else 1
        size = stage.rows * bands * 16
        buckets = stage.fix("buckets", exchange.buckets_for(size, stage.memory_bytes, at_least=stage.workers))
        tasks = [{"partition": p, "buckets": buckets, "bytes": p["bytes"]} for p in stage.partitions]
        spread = [result["bands"] for result in stage.map("signatures", tasks)]
        joined = stage.map(
            "edges",
            [{"bucket": b, "bands": exchange.only(spread, b), "earlier": []} for b in exchange.filled(spread)],
        )
        labels = connect.components(stage, [result["edges"] for result in joined])
        clustered = sum(index["rows"] for index in labels)
        payload = 2 * sum(p["bytes"] for p in stage.partitions) * clustered // max(1, stage.rows) + 128 * clustered
        buckets = stage.fix("clusters", exchange.buckets_for(payload, stage.memory_bytes, at_least=stage.workers))
        tasks = [
            {"partition": p, "labels": exchange.only(labels, p["index"]), "buckets": buckets, "bytes": p["bytes"]}
            for p in stage.partitions
        ]
        members = [result["members"] for result in stage.map("members", tasks)]
        common = {"partitions": len(stage.partitions)}
        chosen = stage.map(
            "choose",
            [{"bucket": b, "members": exchange.only(members, b), **common} for b in exchange.filled(members)],
        )
        decisions = [result["decisions"] for result in chosen]
        return {"decisions": exchange.save(stage.folder, "decisions", decisions)}

    def signatures(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the keys by which the documents of a partition meet, spread by key."""
        by = {"url"} if self.group == "url" else {"text"}
        first, minhash = 0, self._minhash()
        with exchange.Spread(
            work.path("bands.arrow"), BANDS, task["buckets"], sort_by=["key"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], by | ({self.scope} if self.scope else set()), None, work):
                address = removal.addresses(task["partition"]["index"], first, len(batch))
                first += len(batch)
                if self.group == "url":
                    keys = (url_keys(batch, address)[:, 0] ^ removal.scope_salt(batch, self.scope))[:, None]
                else:
                    keys = minhash.band_keys_of(batch)
                row, band = np.nonzero(keys)
                key = keys[row, band]
                table = pa.table([pa.array(key), pa.array(address[row])], schema=BANDS)
                spread.add(table, exchange.bucket_of(key, task["buckets"]))
        return {"bands": spread.index}

    def edges(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: edges between the documents that share a key, as few as join them."""
        return self._minhash().edges(task, work)

    # phases of the search for components: all edges in one task, or in rounds
    components = staticmethod(connect.in_memory)
    both_ends = staticmethod(connect.both_ends)
    large_star = staticmethod(connect.large_star)
    small_star = staticmethod(connect.small_star)
    label = staticmethod(connect.label)

    def members(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: rank and token counts of the clustered documents of a partition, spread by component."""
        from pipeline.kernels.divergence import count_tokens

        schema = choosing.member_schema(self.keep)
        labels = exchange.collect(task["labels"], task["partition"]["index"], connect.LABELS)
        _, rows = removal.split(labels.column("address").to_numpy())
        order = np.argsort(rows)
        rows, roots = rows[order], labels.column("root").to_numpy()[order]
        counting = KLDivergence.model_validate({"tokens": self.tokens, "bits": 28})
        columns = {*keeping.columns(self.keep, self.quality), "text"}
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
                starts, buckets, _ = counting.tokens_of(Documents(docs), [""] * len(docs), work.artifacts)
                offsets, values = count_tokens(starts, buckets)
                arrays = [
                    pa.array(root),
                    pa.array(address),
                    pa.array(removal.weights(docs, self.size_column)),
                    pa.array(removal.source_hashes(docs)),
                    pa.array(np.zeros(len(docs), np.int64)),
                    *(pa.array(rank) for rank in keeping.ranks(docs, self.keep, self.quality, self.sources)),
                    pa.array(np.diff(offsets)),
                    pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
                ]
                spread.add(pa.table(arrays, schema=schema), connect.bucket_of_root(root, task["buckets"]))
        return {"members": spread.index}

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: who stays in every group of a bucket, and the decisions, spread by partition.

        Members are taken group by group in order of rank; the ranks of the bucket are in memory, the counts of a
        slice, and those of the kept documents of one group.
        """
        schema = choosing.member_schema(self.keep)
        names = [field.name for field in schema if field.name != "payload"]
        table = exchange.collect(task["members"], task["bucket"], schema, columns=names)
        rows = {name: table.column(name).to_numpy() for name in names}
        ranks = [rows[field.name] for field in keeping.rank_schema(self.keep)]
        order = keeping.order(rows["root"], [*ranks, rows["address"]])
        rows = {name: values[order] for name, values in rows.items()}
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        match, score = self._matches(task, work, schema, place, rows)
        return {"decisions": removal.spread_decisions(task, work, rows, match, score)}

    def _matches(
        self, task: dict[str, Any], work: Work, schema: pa.Schema, place: np.ndarray, rows: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each member in order: the place of the document that it duplicates (or its own), and their divergence."""
        from pipeline.kernels.divergence import symmetric_divergence

        match, score = np.arange(len(place)), np.zeros(len(place))
        sizes = np.cumsum(rows["length"]) * 4
        kept: list[tuple[int, np.ndarray, np.ndarray]] = []
        root = None
        begin = 0
        while begin < len(place):
            limit = (sizes[begin - 1] if begin else 0) + max(1 << 16, work.memory_bytes // 6)
            end = max(begin + 1, int(np.searchsorted(sizes, limit, "right")))
            offsets, values = choosing.payloads(task, schema, place, begin, end)
            for i in range(begin, end):
                if rows["root"][i] != root:
                    root, kept = rows["root"][i], []
                counts = values[offsets[i - begin] : offsets[i - begin + 1]]
                half = len(counts) // 2
                tokens, times = counts[:half], counts[half:]
                if not half:
                    continue
                found = [symmetric_divergence(tokens, times, t, n, self.smoothing) for _, t, n in kept]
                best = int(np.argmin(found)) if found else -1
                if found and found[best] <= self.max_divergence:
                    match[i], score[i] = kept[best][0], found[best]
                elif len(kept) < self.compare:
                    kept.append((i, tokens.copy(), times.copy()))
            work.progress(end - begin)
            begin = end
        return match, score

    decisions = staticmethod(removal.decisions)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs,
            first_row,
            decisions,
            reason="token_duplicate",
            threshold=self.max_divergence,
            size_column=self.size_column,
        )
