"""Who stays in a component, and which document each other one duplicates, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import exchange
from pipeline.dedup import index, removal
from pipeline.dedup import keep as keeping
from pipeline.step import Work


def member_schema(keep: Sequence[keeping.Policy], bands: int = 0) -> pa.Schema:
    """One clustered document: its component, address, weight, source, rank, band keys, and what it is compared by.

    `snapshot` comes before every other rank; it is 0 without an index.
    """
    return pa.schema(
        [
            pa.field("root", pa.uint64()),
            pa.field("address", pa.uint64()),
            pa.field("weight", pa.int64()),
            pa.field("source", pa.uint64()),
            pa.field("snapshot", pa.int64()),
            *keeping.rank_schema(keep),
            *([pa.field("bands", pa.list_(pa.uint64(), bands))] if bands else []),
            pa.field("length", pa.int64()),
            pa.field("payload", pa.large_list(pa.uint32())),
        ]
    )


def choose(
    task: dict[str, Any],
    work: Work,
    *,
    keep: Sequence[keeping.Policy],
    verify: float | None,
    compare: int,
    bands: int = 0,
) -> dict[str, Any]:
    """The decisions on all members of a bucket of components.

    Members are taken component by component in order of rank. The first stays; each later one is removed when it
    is similar enough to one that stays (the most similar of the first `compare` of them), and stays otherwise.
    The ranks of the whole bucket are in memory (about 100 bytes a member), the payloads only a slice at a time.
    """
    from pipeline.kernels.components import Cover

    schema = member_schema(keep, bands)
    names = [field.name for field in schema if field.name != "payload"]
    table = exchange.collect(task["members"], task["bucket"], schema, columns=names)
    rows = {name: table.column(name).to_numpy() for name in names if name != "bands"}
    ranks = [rows["snapshot"], *(rows[field.name] for field in keeping.rank_schema(keep))]
    order = keeping.order(rows["root"], [*ranks, rows["address"]])
    keys = np.zeros((len(order), bands), np.uint64)
    if bands:
        keys = table.column("bands").combine_chunks().flatten().to_numpy().reshape(-1, bands)[order]
    rows = {name: values[order] for name, values in rows.items()}
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))

    cover = Cover(len(order), verify, compare, bands)
    old = index.is_old(rows["address"])
    sizes = np.cumsum(rows["length"]) * 4
    limit = max(1 << 16, work.memory_bytes // 6)
    begin = 0
    while begin < len(order):
        done = sizes[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(sizes, done + limit, "right")))
        offsets, values = payloads(task, schema, place, begin, end)
        cover.add(rows["root"][begin:end], offsets, values, keys[begin:end], old[begin:end])
        work.progress(end - begin)
        begin = end
    match, similarity = cover.match, cover.similarity

    decisions = removal.spread_decisions(task, work, rows, match, similarity, ~old)
    removed = match != np.arange(len(match))
    return {"decisions": decisions, "removed": removal.removed_by_source(rows["source"][removed])}


def payloads(
    task: dict[str, Any], schema: pa.Schema, place: np.ndarray, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """(offsets [m + 1], values uint32) of the members at places [begin, end), in that order."""
    parts: list[pa.Array] = []
    places: list[np.ndarray] = []
    seen = 0
    for batch in exchange.stream(task["members"], task["bucket"], schema, columns=["payload"]):
        here = place[seen : seen + batch.num_rows]
        seen += batch.num_rows
        inside = np.flatnonzero((here >= begin) & (here < end))
        if len(inside):
            payload = batch.column(0)
            parts.append(payload if len(inside) == len(here) else payload.take(pa.array(inside)))
            places.append(here[inside])
    payload = pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(places))))
    return payload.offsets.to_numpy(), payload.values.to_numpy()
