"""Decides how often each document is seen: mixes sources by weight, upsamples by quality and by cluster size.

The step adds a column `copies`, which packing carries out, and removes documents that are not seen at all. Within
a source (and quality bin, and cluster size) the documents that are seen once more often than the others are those
first in hash order, cut where the tokens are full: so the shares are exact to a document, and no worker counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.errors import DataError, RecipeError, RunError
from cluster.settings import Settings
from pipeline.pack import mixture
from pipeline.schema import Row
from pipeline.step import Corpus, Documents, Verdict, Work
from pipeline.tokens.order import document_keys
from pipeline.tokens.sample import by_source

FINEWEB2 = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}
_BITS = 12  # of the hash, per pass: 4,096 slices, and each slice that is cut into 4,096 again


class Quality(Settings):
    """Upsampling by a score that an earlier step left as a column (`tokens.encode: {keep: [score]}`)."""

    column: str = Field(description="of the score")
    edges: list[float] = Field(description="ascending limits between the bins; a score on one belongs above")
    factors: list[float] = Field(description="how often the documents of each bin count, one more than edges; 0 drops")


class Rehydrate(Settings):
    """Upsampling by how many duplicates a document stands for, undoing a part of deduplication (FineWeb2)."""

    column: str = Field("cluster_size", description="of the number of documents that one stands for")
    copies: dict[int, int] = Field(FINEWEB2, description="from this cluster size on, how often a document counts")


class Mix(Corpus):
    """Mixes sources to a token budget; the report says how many epochs each one is seen, and warns above four."""

    takes: ClassVar[Row] = Row.TOKENS
    gives: ClassVar[Row] = Row.TOKENS

    method: Literal["weights", "proportional", "temperature", "unimax", "doremi"] = Field(
        "proportional", description="how the shares follow: see pipeline/pack/mixture.py"
    )
    weights: dict[str, float] = Field({}, description="share of each source, for method weights; normalised")
    temperature: float = Field(3.0, gt=0, description="for method temperature: 1 is proportional, larger is more even")
    max_epochs: float = Field(4.0, gt=0, description="for method unimax: how often a source may be seen")
    excess_losses: str | None = Field(
        None, description="for method doremi: JSONL, {source: excess loss} per proxy step"
    )
    budget: int | None = Field(None, ge=1, description="tokens in all; null: as many as repeat no source")
    quality: Quality | None = Field(
        None, description="upsampling by a score column: {column: edu_score, edges: [2, 4], factors: [0, 1, 2]}"
    )
    rehydrate: Rehydrate | None = Field(
        None, description="upsampling by how many duplicates a document stands for: {copies: {1: 1, 2: 2, 100: 8}}"
    )

    def check(self) -> None:
        if (self.method == "weights") != bool(self.weights):
            raise RecipeError("pack.mix: the field weights belongs to method: weights, and the method needs it")
        if self.method == "unimax" and self.budget is None:
            raise RecipeError("pack.mix: method unimax shares out a budget; set the field budget, in tokens")
        if self.method == "doremi" and not self.excess_losses:
            raise RecipeError("pack.mix: method doremi reads a file; set the field excess_losses")
        if self.quality and len(self.quality.factors) != len(self.quality.edges) + 1:
            raise RecipeError(
                f"pack.mix: quality has {len(self.quality.edges)} edges, so {len(self.quality.edges) + 1} bins, but "
                f"{len(self.quality.factors)} factors"
            )
        if self.quality and self.quality.edges != sorted(self.quality.edges):
            raise RecipeError(f"pack.mix: the edges of quality must ascend, found {self.quality.edges}")
        if self.rehydrate and min(self.rehydrate.copies, default=0) != 1:
            raise RecipeError("pack.mix: the copies of rehydrate must begin at cluster size 1")

    def input_identity(self) -> list[Any]:
        from cluster import storage

        return [storage.entry(self.excess_losses).version] if self.excess_losses else []

    def decide(self, stage: Any) -> dict[str, Any]:
        tasks = [{"partition": p, "bytes": p["bytes"]} for p in stage.partitions]
        groups = _added(stage.map("measure", tasks))
        targets, report = self._targets({group: sum(slices.values()) for group, slices in groups.items()})
        cuts = {group: _cut(slices, targets[group]) for group, slices in groups.items()}
        wanted = stage.fix("cuts", {group: cut["slice"] for group, cut in cuts.items()})
        finer = _added(stage.map("refine", [{**task, "slices": wanted} for task in tasks]))
        decided = []
        for group, cut in sorted(cuts.items()):
            limit = cut["slice"] << _BITS
            if cut["left"] > 0:
                inside = finer[group]
                inner = _cut(inside, cut["left"])
                # the document at the limit is in when that is nearer to full than leaving it out
                limit += inner["slice"] + (inner["left"] * 2 > inside[inner["slice"]])
            decided.append({"group": group, "whole": cut["whole"], "limit": limit, "wanted": targets[group] > 0})
        for warning in report["warnings"]:
            stage.console.line(f"pack.mix: {warning}")
        return {"groups": decided, "seed": stage.seed, "report": report}

    def measure(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """{"groups": {group: {slice of the hash order: tokens}}} of one partition."""
        return {"groups": self._count(task, work, None)}

    def refine(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """The same within the one slice of each group where its tokens will be full."""
        return {"groups": self._count(task, work, task["slices"])}

    def _count(self, task: dict[str, Any], work: Work, inside: Mapping[str, int] | None) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for batch in _read(task["partition"], work, ["doc_id", "source", "n_tokens", *self._columns()]):
            place = _place(batch, work.seed)
            tokens = batch.column("n_tokens").to_numpy().astype(np.int64)
            for group, rows in self._groups(batch):
                here = place[rows] >> _BITS
                if inside is not None:
                    rows = rows[here == inside[group]]
                    here = place[rows] & ((1 << _BITS) - 1)
                counts = np.bincount(here, tokens[rows], 1 << _BITS).astype(np.int64)
                mine = found.setdefault(group, {})
                for number in np.flatnonzero(counts).tolist():
                    mine[str(number)] = mine.get(str(number), 0) + int(counts[number])
            work.progress(batch.num_rows)
        return found

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table:
        groups = decided["groups"]
        return pa.table(
            {
                "group": pa.array([entry["group"] for entry in groups], pa.string()),
                "whole": pa.array([entry["whole"] for entry in groups], pa.int64()),
                "limit": pa.array([entry["limit"] for entry in groups], pa.int64()),
                "wanted": pa.array([entry["wanted"] for entry in groups], pa.bool_()),
                "seed": pa.array([decided["seed"]] * len(groups), pa.int64()),
            }
        )

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        assert decisions is not None
        table = {row["group"]: row for row in decisions.to_pylist()}
        seed = next((row["seed"] for row in table.values()), 0)
        place = _place(docs.batch, seed)
        copies = np.zeros(len(docs), np.int32)
        verdict = Verdict.keep(len(docs))
        for group, rows in self._groups(docs.batch):
            entry = table[group]
            copies[rows] = entry["whole"] + (place[rows] < entry["limit"])
            _, factor = _factor(group)
            gone = rows[copies[rows] == 0]
            no_share = "low_quality_bin" if factor == 0 else "not_in_mixture"
            verdict.reason[gone] = "over_budget" if entry["wanted"] else no_share
        return docs.batch.append_column("copies", pa.array(copies)), verdict

    def _columns(self) -> list[str]:
        return [part.column for part in (self.quality, self.rehydrate) if part is not None]

    def _groups(self, batch: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray]]:
        """(name, rows) of the documents that count alike: same source, same factor. The name ends with the factor."""
        missing = [name for name in self._columns() if name not in batch.schema.names]
        if missing:
            raise DataError(
                f"pack.mix: the tokens have no column {missing}; carry it along: tokens.encode: {{keep: {missing}}}"
            )
        factor = np.ones(batch.num_rows)
        if self.quality:
            scores = batch.column(self.quality.column).to_numpy(zero_copy_only=False).astype(np.float64)
            factor *= np.array(self.quality.factors)[np.searchsorted(self.quality.edges, scores, "right")]
        if self.rehydrate:
            sizes = batch.column(self.rehydrate.column).to_numpy(zero_copy_only=False).astype(np.int64)
            limits = sorted(self.rehydrate.copies)
            counts = np.array([self.rehydrate.copies[limit] for limit in limits])
            factor *= counts[np.maximum(np.searchsorted(limits, sizes, "right") - 1, 0)]
        for source, rows in by_source(batch.column("source")):
            for value in np.unique(factor[rows]).tolist():
                yield f"{source}\t{value!r}", rows[factor[rows] == value]

    def _targets(self, groups: Mapping[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
        """Tokens that each group shall give in all its copies, and the report."""
        sizes: dict[str, float] = {}
        held: dict[str, int] = {}
        for group, tokens in groups.items():
            source, factor = _factor(group)
            sizes[source] = sizes.get(source, 0.0) + tokens * factor
            held[source] = held.get(source, 0) + tokens
        if not sum(sizes.values()):
            raise RunError("pack.mix: there is no token to mix; the ledger says what removed the documents")
        wanted = self._wanted(dict(sorted(sizes.items())))
        epochs = {source: wanted[source] / sizes[source] if sizes[source] else 0.0 for source in sizes}
        targets = {}
        for group, tokens in groups.items():
            source, factor = _factor(group)
            targets[group] = round(tokens * factor * epochs[source])
        total = sum(wanted.values())
        sources = {
            source: {
                "tokens": held[source],
                "gives": round(tokens),
                "share": tokens / total,
                "epochs": tokens / held[source],
            }
            for source, tokens in sorted(wanted.items())
        }
        highest = {s: max(epochs[s] * _factor(g)[1] for g in groups if _factor(g)[0] == s) for s in sources}
        warnings = [
            f"{source} is seen {sources[source]['epochs']:.1f} times, its most favoured documents {most:.1f} times; "
            f"more than {mixture.MANY_EPOCHS:g} epochs are worth little"
            for source, most in highest.items()
            if most > mixture.MANY_EPOCHS
        ]
        return targets, {"tokens": round(total), "sources": sources, "warnings": warnings}

    def _wanted(self, sizes: dict[str, float]) -> dict[str, float]:
        if self.method == "unimax":
            return mixture.unimax(sizes, float(self.budget or 0), self.max_epochs)
        if self.method == "weights":
            shares = mixture.by_hand(sizes, self.weights)
        elif self.method == "temperature":
            shares = mixture.temperature(sizes, self.temperature)
        elif self.method == "doremi":
            shares = mixture.doremi(mixture.read_excess_losses(str(self.excess_losses)), list(sizes))
        else:
            shares = mixture.proportional(sizes)
        total = float(self.budget) if self.budget else mixture.largest_without_repeats(sizes, shares)
        return {source: share * total for source, share in shares.items()}


def _place(batch: pa.RecordBatch, seed: int) -> np.ndarray:
    """int64 [n]: each document's place in the hash order for mixing, in [0, 2 ** 24)."""
    keys = document_keys(batch.column("doc_id"), seed, "mixing")
    return (keys >> np.uint64(64 - 2 * _BITS)).astype(np.int64)


def _factor(group: str) -> tuple[str, float]:
    source, _, factor = group.rpartition("\t")
    return source, float(factor)


def _added(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, int]]:
    total: dict[str, dict[int, int]] = {}
    for result in results:
        for group, slices in result["groups"].items():
            mine = total.setdefault(group, {})
            for number, tokens in slices.items():
                mine[int(number)] = mine.get(int(number), 0) + tokens
    return total


def _cut(slices: Mapping[int, int], target: int) -> dict[str, Any]:
    """How often the whole is taken, the slice in which the rest ends, and how many tokens of that slice are wanted."""
    size = sum(slices.values())
    whole = int(target // size) if size else 0
    left = target - whole * size
    for number in sorted(slices):
        if slices[number] > left:
            return {"whole": whole, "slice": number, "left": left}
        left -= slices[number]
    return {"whole": whole, "slice": 1 << _BITS, "left": 0}


def _read(partition: dict[str, Any], work: Work, columns: list[str]) -> Iterator[pa.RecordBatch]:
    from pipeline import shards

    return shards.read(partition, columns=columns, batch_documents=work.batch_documents)
