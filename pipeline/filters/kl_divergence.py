"""Outlier documents by their token distribution, which is far from the corpus' own: Llama 3's filter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster import storage
from cluster.errors import RecipeError
from pipeline import shards
from pipeline.filters import token_counts
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

STEP = 0.01
"""Width of the histogram's cells, nats: thresholds are multiples of it, so that they do not depend on partitions."""
CELLS = 5000
NO_LIMIT = 1e9  # finite, because decisions are stored as JSON
LENGTHS = 128
"""Length bins: two per doubling of the number of tokens."""

SCORES = pa.schema([("tokens", pa.int64()), ("divergence", pa.float64()), ("group", pa.string()), ("top", pa.string())])


class KLDivergence(Corpus):
    """Removes documents whose token distribution diverges most from that of the corpus (`token_divergence`).

    Pass one counts the tokens of the corpus, pass two scores each document by D(p_document || q_corpus) in nats, the
    document itself left out of q. Short documents diverge more by chance alone; so a document is compared with those
    of its own length only (two bins per doubling), and goes when it lies above the percentile of its bin. With
    `by: language` each language has its own distribution and thresholds.

    The stage's folder gets `outliers/`: Parquet with doc_id, url, divergence, threshold and the tokens that
    contribute most. Llama 3 does not publish direction, smoothing or threshold; these are ours.
    Source: Grattafiori et al. 2024, arXiv 2407.21783, section 3.1.1.
    """

    tokens: Literal["words", "tokenizer"] = Field("words", description="words, or tokens of the recipe's tokenizer")
    percentile: float = Field(99.5, gt=0, le=100, description="of a length bin; documents above it go")
    deviations: float | None = Field(
        None, gt=0, description="instead: this many robust standard deviations (1.4826 MAD) above the bin's median"
    )
    max_divergence: float | None = Field(None, description="documents above this go in any case, nats")
    min_documents: int = Field(200, ge=1, description="bins with fewer documents are joined with the next longer one")
    smoothing: float = Field(0.1, gt=0, description="count added to every token")
    by: str | None = Field(None, description="a column (language, source): one distribution for each of its values")
    bits: int = Field(20, ge=10, le=28, description="tokens are counted in 2 ** bits buckets")
    column: str | None = Field("kl_divergence", description="column for the score; null for none")

    def check(self) -> None:
        if self.percentile == 100 and self.deviations is None and self.max_divergence is None:
            raise RecipeError(
                "filters.kl_divergence: percentile 100 removes nothing; set it lower, or set max_divergence"
            )

    def needs(self) -> Sequence[str]:
        return ("tokenizer",) if self.tokens == "tokenizer" else ()

    def decide(self, stage: StageRun) -> dict[str, Any]:
        tasks = [{"partition": p, "bytes": p["bytes"]} for p in stage.partitions]
        counted = stage.map("count", tasks)
        counts = np.zeros(1 << self.bits, np.int64)
        groups: dict[str, int] = {}
        types: dict[str, int] = {}
        for result in counted:
            token_counts.add(result["counts"], counts)
            for group, total in result["groups"].items():
                groups[group] = groups.get(group, 0) + total
        for group in groups:
            types[group] = int(np.count_nonzero(counts)) if len(groups) == 1 else 0
        if len(groups) > 1:
            # Buckets are salted by group: each group's own share of the filled ones, by its share of tokens.
            filled, everything = int(np.count_nonzero(counts)), sum(groups.values())
            types = {group: max(1, round(filled * total / everything)) for group, total in groups.items()}
        path = token_counts.write(storage.join(stage.folder, "counts.npz"), counts)
        known = {"counts": path, "groups": groups, "types": types}
        scored = stage.map("score", [{**task, **known} for task in tasks])
        histograms: dict[str, np.ndarray] = {}
        for result in scored:
            for group, cells in result["histograms"].items():
                table = histograms.setdefault(group, np.zeros((LENGTHS, CELLS), np.int64))
                for length, cell, count in cells:
                    table[length, cell] += count
        limits = {group: self.thresholds(table) for group, table in sorted(histograms.items())}
        decided = {"scores": [result["scores"] for result in scored], "limits": limits}
        explained = stage.map("outliers", [{**task, **decided} for task in tasks])
        return {**decided, "outliers": [result["file"] for result in explained if result["file"]]}

    def count(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Pass one: token counts of a partition."""
        counts = np.zeros(1 << self.bits, np.int64)
        groups: dict[str, int] = {}
        for docs, names in self._batches(task["partition"], work):
            first, buckets, _ = self.tokens_of(docs, names, work.artifacts)
            counts += np.bincount(buckets, minlength=len(counts))
            for name, total in zip(names, np.diff(first).tolist(), strict=True):
                groups[name] = groups.get(name, 0) + total
        return {"counts": token_counts.write(work.path("counts.npz"), counts), "groups": groups}

    def score(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Pass two: the divergence of each document of a partition, and a histogram of them by length."""
        from pipeline.kernels.divergence import divergences

        counts = token_counts.add(task["counts"], np.zeros(1 << self.bits, np.int64))
        histograms: dict[str, dict[tuple[int, int], int]] = {}
        batches = []
        for docs, names in self._batches(task["partition"], work):
            first, buckets, name_of = self.tokens_of(docs, names, work.artifacts)
            totals = np.array([task["groups"][name] for name in names], np.float64)
            types = np.array([task["types"][name] for name in names], np.float64)
            score, top = divergences(first, buckets, counts, totals, types, self.smoothing)
            tokens = np.diff(first)
            lengths, cells = length_bin(tokens), np.minimum(np.nan_to_num(score) / STEP, CELLS - 1).astype(np.int64)
            for name, length, cell, value in zip(names, lengths.tolist(), cells.tolist(), score.tolist(), strict=True):
                if not math.isnan(value):
                    table = histograms.setdefault(name, {})
                    table[length, max(cell, 0)] = table.get((length, max(cell, 0)), 0) + 1
            tops = [" ".join(name_of(int(place)) for place in row if place >= 0) for row in top]
            columns = [pa.array(tokens), pa.array(score), pa.array(names, pa.string()), pa.array(tops, pa.string())]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=SCORES))
        path = work.path("scores.arrow")
        with storage.open_write(path) as sink, pa.ipc.new_file(sink, SCORES) as writer:
            for batch in batches:
                writer.write_batch(batch)
        cells_of = {
            group: [[length, cell, count] for (length, cell), count in sorted(table.items())]
            for group, table in sorted(histograms.items())
        }
        return {"scores": path, "histograms": cells_of}

    def outliers(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """The documents of a partition that go, with the tokens that explain it."""
        table = self.decisions(task, task["partition"]["index"])
        writer = shards.ShardWriter(work.path("outliers.parquet"))
        at = 0
        for batch in shards.read(task["partition"], columns=["doc_id", "url"], batch_documents=work.batch_documents):
            scores = table.slice(at, batch.num_rows).combine_chunks()
            at += batch.num_rows
            divergence = scores.column("divergence").to_numpy()
            limit = scores.column("limit").to_numpy()
            goes = pa.array(divergence > limit)
            columns = {"divergence": pa.array(divergence), "limit": pa.array(limit), "top": scores.column("top")}
            for name, values in columns.items():
                batch = batch.append_column(name, values.combine_chunks() if name == "top" else values)
            if goes.true_count:
                writer.write(batch.filter(goes))
            work.progress(batch.num_rows)
        return {"file": writer.close()}

    def thresholds(self, table: np.ndarray) -> list[float]:
        """The largest divergence that stays, by length bin, from the histogram int64 [LENGTHS, CELLS]."""
        limits = [NO_LIMIT] * LENGTHS
        used = [k for k in range(LENGTHS) if table[k].any()]
        groups: list[list[int]] = [[]]
        for k in used:
            groups[-1].append(k)
            if table[groups[-1]].sum() >= self.min_documents:
                groups.append([])
        if len(groups) > 1:  # what is left over has too few documents: it joins the longest full bin
            rest = groups.pop()
            groups[-1] += rest
        for group in groups:
            if not group:
                continue
            limit = self._limit(table[group].sum(axis=0))
            for k in group:
                limits[k] = limit if self.max_divergence is None else min(limit, self.max_divergence)
        return limits

    def _limit(self, cells: np.ndarray) -> float:
        below = np.cumsum(cells)
        if self.deviations is None:
            return float((np.searchsorted(below, self.percentile / 100 * below[-1]) + 1) * STEP)
        middle = int(np.searchsorted(below, below[-1] / 2))
        away = np.bincount(np.abs(np.arange(CELLS) - middle), weights=cells.astype(np.float64), minlength=CELLS)
        spread = int(np.searchsorted(np.cumsum(away), below[-1] / 2))
        return (middle + 1 + self.deviations * 1.4826 * max(spread, 1)) * STEP

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table:
        with storage.open_read(decided["scores"][partition]) as source:
            table = pa.ipc.open_file(source).read_all()
        bins = length_bin(table.column("tokens").to_numpy())
        groups = table.column("group").to_pylist()
        nothing = [NO_LIMIT] * LENGTHS
        limits = [decided["limits"].get(group, nothing)[k] for group, k in zip(groups, bins.tolist(), strict=True)]
        return table.append_column("limit", pa.array(limits, pa.float64()))

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        assert decisions is not None
        part = decisions.slice(first_row, len(docs))
        score, limit = part.column("divergence").to_numpy(), part.column("limit").to_numpy()
        verdict = Verdict.keep(len(docs))
        goes = score > limit
        verdict.reason[goes] = "token_divergence"
        verdict.score[goes], verdict.threshold[goes] = score[goes], limit[goes]
        rows = docs.batch
        if self.column:
            if self.column in rows.schema.names:
                rows = rows.drop_columns([self.column])
            rows = rows.append_column(self.column, pa.array(score))
        return rows, verdict

    def _batches(self, partition: dict[str, Any], work: Work) -> Iterator[tuple[Documents, list[str]]]:
        columns = ["text", *([self.by] if self.by else [])]
        for batch in shards.read(partition, columns=columns, batch_documents=work.batch_documents):
            if self.by is None:
                names = [""] * batch.num_rows
            else:
                names = [name or "" for name in batch.column(self.by).cast(pa.string()).to_pylist()]
            yield Documents(batch), names
            work.progress(batch.num_rows)

    def tokens_of(
        self, docs: Documents, names: list[str], artifacts: dict[str, str]
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """(first, buckets, what the token at a place is called)."""
        from pipeline.kernels.divergence import buckets_of
        from pipeline.kernels.text import readable, words_of
        from pipeline.kernels.words import hash_word

        salts = np.array([hash_word(name) for name in names], np.uint64)
        if self.tokens == "words":
            words = words_of(docs, "script")
            hashes = np.where(words.normal != 0, words.normal, words.hash)
            _, data = docs.text_buffers()

            def name_of(place: int) -> str:
                start = words.start[place]
                return data[start : start + words.size[place]].tobytes().decode("utf-8", "replace")[:40]

            return words.first, buckets_of(words.first, hashes, salts, self.bits), name_of
        tokenizer, texts = _tokenizer(artifacts["tokenizer"]), readable(docs.column("text")).to_pylist()
        encoded = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        first = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded], dtype=np.int64)])
        flat = np.array([i for ids in encoded for i in ids], np.uint64)
        return (
            first,
            buckets_of(first, flat, salts, self.bits),
            lambda place: str(tokenizer.id_to_token(int(flat[place]))),
        )


def length_bin(tokens: np.ndarray) -> np.ndarray:
    """The length bin of documents of so many tokens: two per doubling."""
    bins: np.ndarray = np.floor(2 * np.log2(np.maximum(tokens, 1))).astype(np.int64)
    return np.minimum(bins, LENGTHS - 1)


def _tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(storage.read_bytes(storage.join(folder, "tokenizer.json")))
