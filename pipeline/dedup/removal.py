"""How a duplicate's fate travels: decided where all copies meet, carried out where the document lies.

A decision row is (row in its partition, what becomes of it, the doc_id it duplicates, similarity, cluster size). Rows
go through the exchange with the partition as their bucket; `carry_out` applies those of one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import RecipeError
from pipeline import exchange, shards
from pipeline.dedup import keep as keeping
from pipeline.step import Documents, Verdict, Work

DECISION = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("removed", pa.bool_(), nullable=False),  # False: it stays for `size` documents
        pa.field("match_id", pa.binary(16)),
        pa.field("similarity", pa.float32()),
        pa.field("size", pa.int64()),
    ]
)

RECORDS = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("record", pa.large_binary(), nullable=False)]
)
"""What `dedup/index.py` keeps of a document."""

ROW_BITS = 40
"""A document's address is partition << 40 | row: what the exchange calls a document by."""


def addresses(partition: int, first_row: int, rows: int) -> np.ndarray:
    """The addresses (uint64 [rows]) of consecutive rows of a partition."""
    return np.uint64(partition << ROW_BITS) + np.arange(first_row, first_row + rows, dtype=np.uint64)


def split(address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(partition, row) int64 of addresses."""
    return (address >> np.uint64(ROW_BITS)).astype(np.int64), (address & np.uint64((1 << ROW_BITS) - 1)).astype(
        np.int64
    )


def batches(
    partition: dict[str, Any], columns: Iterable[str], size_column: str | None, work: Work
) -> Iterator[pa.RecordBatch]:
    """The named columns of a partition, and the size column where there is one; reports progress."""
    wanted = sorted({*columns, *([size_column] if size_column else [])})
    for batch in shards.read(partition, columns=wanted, batch_documents=work.batch_documents):
        yield batch
        work.progress(batch.num_rows)


def scope_salt(batch: pa.RecordBatch, column: str | None) -> np.ndarray:
    """A 64-bit number per row (uint64 [n]) that differs between documents which must not meet. 0 without a scope."""
    from pipeline.kernels.hashing import name_hash

    if column is None:
        return np.zeros(batch.num_rows, np.uint64)
    if column not in batch.schema.names:
        raise RecipeError(f"scope: the documents have no column '{column}'")
    names = batch.column(column).cast(pa.string()).dictionary_encode(null_encoding="encode")
    table = np.array([name_hash(name) for name in names.dictionary.to_pylist()], np.uint64)
    return table[names.indices.to_numpy()] if len(table) else np.zeros(batch.num_rows, np.uint64)


def decision_table(
    row: np.ndarray, removed: np.ndarray, match_id: pa.Array, similarity: np.ndarray, size: np.ndarray
) -> pa.Table:
    """Rows of DECISION from arrays of equal length."""
    return pa.table(
        [pa.array(row, pa.int64()), pa.array(removed), match_id, pa.array(similarity, pa.float32()), pa.array(size)],
        schema=DECISION,
    )


def spread_decisions(
    task: dict[str, Any],
    work: Work,
    rows: dict[str, np.ndarray],
    match: np.ndarray,
    score: np.ndarray,
    told: np.ndarray | None = None,
) -> dict[str, Any]:
    """The index of the decisions on a bucket of members, spread by the task's `partitions`.

    rows: address, weight, id_high and id_low of the members, in order; match: the place of the one that each
    duplicates, its own if it stays; score: float [n]. `told` bool [n]: only of these is anything said (None: of all).
    """
    removed = match != np.arange(len(match))
    size = np.bincount(match, rows["weight"], len(match)).astype(np.int64)
    changed = removed | (size != rows["weight"])
    tell = np.flatnonzero(changed if told is None else changed & told)
    partition, row = split(rows["address"][tell])
    match_id = keeping.id_bytes(rows["id_high"][match[tell]], rows["id_low"][match[tell]])
    with exchange.Spread(
        work.path("decisions.arrow"), DECISION, task["partitions"], memory_bytes=work.memory_bytes
    ) as spread:
        spread.add(decision_table(row, removed[tell], match_id, score[tell], size[match[tell]]), partition)
    return spread.index


def decisions(decided: dict[str, Any], partition: int) -> pa.Table | None:
    """`decisions` of a step: `read` of the indices that `exchange.save` wrote for its `decide`."""
    return read(exchange.load(decided["decisions"], partition), partition)


def read(indices: Sequence[dict[str, Any]], partition: int) -> pa.Table | None:
    """The decisions on one partition in order of row; None when there are none."""
    table = exchange.collect(indices, partition, DECISION)
    return table.sort_by("row") if table.num_rows else None


def carry_out(
    docs: Documents,
    first_row: int,
    decisions: pa.Table | None,
    *,
    reason: str,
    threshold: float,
    size_column: str | None,
) -> tuple[pa.RecordBatch, Verdict | None]:
    """One batch with its decisions: removed rows in the verdict, the cluster size of the others as a column.

    A document that was alone keeps the size that it came with, or 1.
    """
    batch = docs.batch
    begin = end = 0
    if decisions is not None:
        rows = decisions.column("row").to_numpy()
        begin, end = np.searchsorted(rows, [first_row, first_row + len(docs)])
    here = decisions.slice(begin, end - begin).combine_chunks() if decisions is not None and end > begin else None
    at = here.column("row").to_numpy() - first_row if here is not None else np.zeros(0, np.int64)
    removed = here.column("removed").to_numpy().astype(bool) if here is not None else np.zeros(0, bool)
    if size_column:
        sizes = weights(batch, size_column)
        if here is not None:
            sizes[at[~removed]] = here.column("size").to_numpy()[~removed]
        batch = set_column(batch, size_column, pa.array(sizes, pa.int32()))
    if here is None or not removed.any():
        return batch, None
    verdict = Verdict.keep(len(docs))
    gone = at[removed]
    verdict.reason[gone] = reason
    verdict.score[gone] = here.column("similarity").to_numpy()[removed]
    verdict.threshold[gone] = threshold
    verdict.match_id = np.full(len(docs), None, object)
    verdict.match_id[gone] = np.array(here.column("match_id").to_pylist(), object)[removed]
    return batch, verdict


def weights(batch: pa.RecordBatch, size_column: str | None) -> np.ndarray:
    """How many documents each row already stands for (int64 [n]): its size column, else 1."""
    if size_column is None or size_column not in batch.schema.names:
        return np.ones(batch.num_rows, np.int64)
    return batch.column(size_column).fill_null(1).to_numpy(zero_copy_only=False).astype(np.int64)


def set_column(batch: pa.RecordBatch, name: str, values: pa.Array, field: pa.Field | None = None) -> pa.RecordBatch:
    """The batch with a column replaced or appended; `field` where it must not be a nullable one of the values' type."""
    index = batch.schema.get_field_index(name)
    field = field or pa.field(name, values.type)
    return batch.append_column(field, values) if index < 0 else batch.set_column(index, field, values)


def source_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """The hash of each row's source (uint64 [n]), by which losses are counted where the names are not at hand."""
    return scope_salt(batch, "source")


def count_sources(batch: pa.RecordBatch, counts: dict[str, int]) -> None:
    """Add the batch's documents per source to counts, in place."""
    for pair in batch.column("source").value_counts().to_pylist():
        counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of several {name: n}, by name."""
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def removed_by_source(source: np.ndarray) -> dict[str, int]:
    """How many removed documents each hash of a source has, as JSON can say it."""
    hashes, count = np.unique(source, return_counts=True)
    return {str(s): int(n) for s, n in zip(hashes.tolist(), count.tolist(), strict=True)}


def account(
    name: str, documents: Iterable[dict[str, int]], removed: Iterable[dict[str, int]], alarm_share: float
) -> dict[str, Any]:
    """What each source lost, and a warning for each that lost more than its share: {"sources", "alarms"}.

    documents: {source: n} of each map task; removed: {hash of a source: n} of each reduce task.
    """
    by_source = losses(sum_counts(documents), sum_counts(removed))
    found = alarms(by_source, alarm_share)
    for alarm in found:
        logging.getLogger(__name__).warning("%s: %s", name, alarm)
    return {"sources": by_source, "alarms": found}


def losses(documents: dict[str, int], removed: dict[str, int]) -> dict[str, dict[str, int]]:
    """{source: {"documents": n, "removed": n}} from documents per source and removals per hash of a source."""
    from pipeline.kernels.hashing import name_hash

    return {s: {"documents": n, "removed": removed.get(str(name_hash(s)), 0)} for s, n in documents.items()}


def alarms(by_source: dict[str, dict[str, int]], share: float) -> list[str]:
    """A sentence for each source that lost more than its share."""
    return [
        f"source '{source}' lost {n['removed']:,} of {n['documents']:,} documents, more than alarm_share {share:.0%}: "
        "look at some of them with `why` before training on the rest"
        for source, n in by_source.items()
        if n["removed"] > share * n["documents"]
    ]
