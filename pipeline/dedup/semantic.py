"""Documents that mean the same, by a column of embeddings: SemDeDup (Abbas et al. 2303.09540).

Embeddings are made elsewhere (`crawl.corpus` or a step of the user's adds the column). They are cut into cells by
spherical k-means; within a cell a document goes when its cosine similarity to one that stays is high enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import Field

from cluster import storage
from cluster.errors import RecipeError
from pipeline import exchange
from pipeline.dedup import keep as keeping
from pipeline.dedup import removal
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun


class Semantic(Corpus):
    """Of documents whose embeddings are close one stays; the others are removed as `semantic_duplicate`.

    Every document removed has at least the cosine similarity `threshold` to the one named as its match, which stays.
    Similar documents in different cells are not found: fewer cells find more and cost more, documents² / cells. A
    document without an embedding, or with one that is zero or not finite, stays.
    """

    column: str = Field("embedding", description="column with a list of numbers per document")
    threshold: float = Field(0.95, gt=0, le=1, description="cosine similarity from which documents are duplicates")
    cells: int = Field(0, ge=0, description="k-means cells; 0: one per 2,000 documents")
    sample: int = Field(
        100_000, ge=1, description="documents that the cells are found from, by the least doc_ids' hashes"
    )
    rounds: int = Field(10, ge=1, description="rounds of k-means")
    keep: list[keeping.Policy] = Field(
        default=["newest", "longest"], description="which copy stays, in order of importance; then the least doc_id"
    )
    quality: str | None = Field(None, description="score column for keep: [quality]; the highest stays")
    sources: list[str] = Field(default=[], description="for keep: [source]; most preferred first")
    size_column: str | None = Field("cluster_size", description="column for the number of documents one stands for")

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())

    def _schema(self) -> pa.Schema:
        fields = [("cell", pa.uint64()), ("address", pa.uint64()), ("weight", pa.int64())]
        return pa.schema(
            [*(pa.field(*f) for f in fields), *keeping.rank_schema(self.keep), pa.field("vector", pa.large_binary())]
        )

    def _vectors(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """(rows that have an embedding [m], unit vectors float32 [m, d])."""
        from pipeline.kernels.vectors import unit_vectors

        if self.column not in batch.schema.names:
            raise RecipeError(f"dedup.semantic: the documents have no column '{self.column}' with embeddings")
        column = batch.column(self.column)
        given = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        lists = column.take(pa.array(given))
        lengths = np.unique(pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise RecipeError(
                f"dedup.semantic: '{self.column}' holds vectors of different lengths {lengths[:5].tolist()}"
            )
        if len(lengths) == 0 or lengths[0] == 0:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        flat = lists.flatten().fill_null(0).to_numpy(zero_copy_only=False).astype(np.float32)
        vectors = unit_vectors(flat.reshape(-1, int(lengths[0])))
        real = vectors.any(axis=1)
        return given[real], vectors[real]

    def decide(self, stage: StageRun) -> dict[str, Any]:
        cells = self.cells or max(1, stage.rows // 2000)
        picked = [
            r["picked"] for r in stage.map("pick", [{"partition": p, "bytes": p["bytes"]} for p in stage.partitions])
        ]
        if not any(index["rows"] for index in picked):
            return {"decisions": []}
        (trained,) = stage.map("cluster", [{"picked": picked, "cells": cells}])
        buckets = stage.fix("buckets", max(stage.workers, min(cells, 1024)))
        tasks = [
            {"partition": p, "centroids": trained["centroids"], "buckets": buckets, "bytes": p["bytes"]}
            for p in stage.partitions
        ]
        spread = [result["cells"] for result in stage.map("assign", tasks)]
        chosen = stage.map(
            "choose",
            [
                {"bucket": b, "cells": exchange.only(spread, b), "partitions": len(stage.partitions)}
                for b in exchange.filled(spread)
            ],
        )
        decisions = [result["decisions"] for result in chosen]
        return {"decisions": exchange.save(stage.folder, "decisions", decisions)}

    def pick(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: the embeddings of the `sample` documents of a partition whose doc_id has the least hash."""
        from pipeline.kernels.hashing import mix64

        schema = pa.schema([pa.field("key", pa.uint64()), pa.field("vector", pa.large_binary())])
        best: tuple[np.ndarray, list[bytes]] = np.zeros(0, np.uint64), []
        for batch in removal.batches(task["partition"], ["doc_id", self.column], None, work):
            rows, vectors = self._vectors(batch)
            high, low = keeping.id_halves(batch.column("doc_id"))
            fresh = np.array([mix64(key) for key in (high ^ low * np.uint64(3))[rows]], np.uint64)
            keys = np.concatenate([best[0], fresh])
            blobs = best[1] + [vector.tobytes() for vector in vectors]
            order = np.argsort(keys, kind="stable")[: self.sample]
            best = keys[order], [blobs[i] for i in order.tolist()]
        with exchange.Spread(work.path("picked.arrow"), schema, 1, memory_bytes=work.memory_bytes) as spread:
            rows_out = pa.table([pa.array(best[0]), pa.array(best[1], pa.large_binary())], schema=schema)
            spread.add(rows_out, np.zeros(len(best[0]), np.int64))
        return {"picked": spread.index}

    def cluster(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """One task: the centroids, from the sample in order of hash."""
        from pipeline.kernels.vectors import spherical_kmeans

        schema = pa.schema([pa.field("key", pa.uint64()), pa.field("vector", pa.large_binary())])
        table = exchange.collect(task["picked"], 0, schema).sort_by([("key", "ascending"), ("vector", "ascending")])
        blobs = table.slice(0, self.sample).column("vector").to_pylist()
        vectors = np.stack([np.frombuffer(blob, np.float32) for blob in blobs])
        centroids = spherical_kmeans(vectors, min(task["cells"], len(vectors)), self.rounds)
        path = work.path("centroids.arrow")
        with storage.open_write(path) as out, pa.ipc.new_file(out, pa.schema([("c", pa.large_binary())])) as writer:
            writer.write_table(pa.table({"c": pa.array([row.tobytes() for row in centroids], pa.large_binary())}))
        return {"centroids": path}

    def assign(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: cell, rank and unit vector of every document of a partition, spread by cell."""
        from pipeline.kernels.vectors import nearest

        with storage.open_read(task["centroids"]) as source:
            blobs = pa.ipc.open_file(source).read_all().column("c").to_pylist()
        centroids = np.stack([np.frombuffer(blob, np.float32) for blob in blobs])
        first = 0
        columns = {*keeping.columns(self.keep, self.quality), self.column}
        with exchange.Spread(
            work.path("cells.arrow"), self._schema(), task["buckets"], sort_by=["cell"], memory_bytes=work.memory_bytes
        ) as spread:
            for batch in removal.batches(task["partition"], columns, self.size_column, work):
                rows, vectors = self._vectors(batch)
                address = removal.addresses(task["partition"]["index"], first, len(batch))[rows]
                first += len(batch)
                if len(rows) == 0:
                    continue
                if vectors.shape[1] != len(centroids):
                    lengths = f"{vectors.shape[1]} and of {len(centroids)}"
                    raise RecipeError(f"dedup.semantic: '{self.column}' holds vectors of {lengths} numbers")
                cell = nearest(vectors, centroids)
                docs = batch.take(pa.array(rows))
                arrays = [
                    pa.array(cell.astype(np.uint64)),
                    pa.array(address),
                    pa.array(removal.weights(docs, self.size_column)),
                    *(pa.array(rank) for rank in keeping.ranks(docs, self.keep, self.quality, self.sources)),
                    pa.array([vector.tobytes() for vector in vectors], pa.large_binary()),
                ]
                spread.add(pa.table(arrays, schema=self._schema()), cell % task["buckets"])
        return {"cells": spread.index}

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: the greedy cover of each cell in order of rank. A cell is in memory as a whole."""
        from pipeline.kernels.vectors import cover

        table = exchange.collect(task["cells"], task["bucket"], self._schema())
        rows = {name: table.column(name).to_numpy() for name in table.column_names if name != "vector"}
        ranks = [rows[field.name] for field in keeping.rank_schema(self.keep)]
        order = keeping.order(rows["cell"], [*ranks, rows["address"]])
        blobs = table.column("vector").take(pa.array(order)).to_pylist()
        rows = {name: values[order] for name, values in rows.items()}
        match, similarity = np.arange(len(order)), np.full(len(order), np.nan, np.float32)
        starts = np.flatnonzero(np.r_[True, rows["cell"][1:] != rows["cell"][:-1]])
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            vectors = np.stack([np.frombuffer(blob, np.float32) for blob in blobs[start:end]])
            here = np.empty(end - start, np.int64)
            cover(vectors, self.threshold, here, similarity[start:end])
            match[start:end] = here + start
            work.progress(end - start)
        return {"decisions": removal.spread_decisions(task, work, rows, match, similarity)}

    decisions = staticmethod(removal.decisions)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs,
            first_row,
            decisions,
            reason="semantic_duplicate",
            threshold=self.threshold,
            size_column=self.size_column,
        )
