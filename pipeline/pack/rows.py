"""One bucket of documents becomes one PACKED shard: laid into rows, shuffled, written group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from pipeline import exchange
from pipeline.schema import packed_schema
from pipeline.step import Work, string_buffers
from pipeline.tokens.order import shuffled
from pipeline.tokens.sample import by_source

SPREAD = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("doc_id", pa.binary(16), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("copy", pa.int32(), nullable=False),
        pa.field("input_ids", pa.large_binary(), nullable=False),
        pa.field("pieces", pa.list_(pa.int32())),  # tokens of each part that wants a row for itself; null: one part
        pa.field("loss_mask", pa.large_binary()),
    ]
)
"""What `buckets.spread` sends to a bucket: one row per copy of a document."""


def spread_schema(groups: Sequence[str]) -> pa.Schema:
    """SPREAD, and behind it the columns of `groups` that it lacks."""
    return pa.schema([*SPREAD, *(pa.field(name, pa.string()) for name in groups if name not in SPREAD.names)])


GROUP_TOKENS = 1 << 21
"""Tokens per row group: what a reader decodes to get at one row."""


class Rows(NamedTuple):
    """Which piece of which part lies in which row.

    part, start   int64 [pieces]: the part's number and the piece's first token in it
    length        int32 [pieces]
    row           int64 [pieces], in [0, rows)
    """

    part: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    rows: int


Layout = Callable[[np.ndarray, int], Rows]
"""From the lengths of parts (int64 [n]: whole documents, unless a step before has cut them) and seq_len to rows."""


def fill(task: dict[str, Any], work: Work, layout: Layout) -> dict[str, Any]:
    """Pack one bucket into one PACKED shard; rows are in an order given by the seed."""
    from pipeline.kernels.packing import group_by_row

    plan, bucket = task["plan"], task["bucket"]
    seq_len, dtype = plan["seq_len"], np.dtype(plan["dtype"])
    table = exchange.collect(task["indices"], bucket, spread_schema(plan["groups"]))
    order = pc.sort_indices(table, [("key", "ascending"), ("doc_id", "ascending")])
    names = dict.fromkeys(("doc_id", "source", "copy", *plan["groups"]))
    identity = table.select(list(names)).take(order).combine_chunks()
    offsets, data = string_buffers(_one_array(table.column("input_ids")))
    picked = order.to_numpy()
    begin, lengths = offsets[:-1][picked] // dtype.itemsize, np.diff(offsets)[picked] // dtype.itemsize
    tokens = data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
    if len(tokens) and int(tokens.max()) >= plan["vocab_size"]:
        raise DataError(
            f"bucket {bucket}: there is a token {int(tokens.max())}, but the tokenizer has {plan['vocab_size']}; were "
            "the documents encoded with another one?"
        )
    part_document, part_start, part_length = _parts(table.column("pieces"), picked, lengths)
    laid = layout(part_length, seq_len)
    turn = np.empty(laid.rows, np.int64)
    turn[shuffled(laid.rows, work.seed, f"rows of bucket {bucket}")] = np.arange(laid.rows)
    row_offsets, pieces = group_by_row(turn[laid.row], laid.rows)
    part, length = laid.part[pieces], laid.length[pieces]
    document, start = part_document[part], part_start[part] + laid.start[pieces]
    mask, mask_first = None, None
    if plan["loss_mask"]:
        mask_offsets, mask = string_buffers(_one_array(table.column("loss_mask")))
        if not np.array_equal(np.diff(mask_offsets)[picked], lengths):
            raise DataError(f"bucket {bucket}: a loss_mask has not as many entries as its document has tokens")
        mask_first = mask_offsets[:-1][picked][document] + start
    schema = packed_schema(seq_len, plan["vocab_size"], loss_mask=plan["loss_mask"], groups=plan["groups"])
    doc_ids = _one_array(identity.column("doc_id")).cast(pa.binary())
    groups = {name: _one_array(identity.column(name)) for name in plan["groups"]}
    first = begin[document] + start
    path = work.path("rows.parquet")
    group = max(1, GROUP_TOKENS // seq_len)
    with storage.open_write(path) as sink, _writer(sink, schema) as writer:
        for low in range(0, laid.rows, group):
            high = min(low + group, laid.rows)
            span = slice(row_offsets[low], row_offsets[high])
            inside = row_offsets[low : high + 1] - row_offsets[low]
            arrays = [
                _full(tokens, first[span], length[span], inside, seq_len, plan["pad_id"], schema.field("input_ids")),
                _lists(inside, pa.array(length[span]), schema.field("doc_lengths").type),
                _lists(inside, doc_ids.take(pa.array(document[span])), schema.field("doc_ids").type),
            ]
            if mask is not None and mask_first is not None:
                field = schema.field("loss_mask")
                arrays.append(_full(mask, mask_first[span], length[span], inside, seq_len, 0, field))
            for name, values in groups.items():
                value = values.take(pa.array(document[span]))
                arrays.append(_lists(inside, value, schema.field(f"group_{name}").type))
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            work.progress(high - low)
    per_document = np.bincount(document, minlength=len(lengths))
    wanted = np.bincount(part_document, minlength=len(lengths))
    return {
        "path": path,
        "rows": int(laid.rows),
        "tokens": int(lengths.sum()),
        "documents": int((identity.column("copy").to_numpy() == 0).sum()),
        "cut": int((per_document > wanted).sum()),
        "pieces": len(laid.row),
        "sources": _by_source(identity, begin, lengths, part_document, part_start, tokens, plan["fim_ids"]),
    }


def _parts(
    column: pa.ChunkedArray, picked: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, start, length) of the parts that each document, in the order `picked`, consists of."""
    if column.null_count == len(column):
        return np.arange(len(lengths)), np.zeros(len(lengths), np.int64), lengths
    parts = _one_array(column).take(pa.array(picked))
    document = pc.list_parent_indices(parts).to_numpy().astype(np.int64)
    length = parts.flatten().to_numpy().astype(np.int64)
    if not np.array_equal(np.bincount(document, length, len(lengths)), lengths):
        raise DataError("the column 'pieces' does not add up to the tokens of its document")
    before = np.cumsum(length) - length
    return document, before - (np.cumsum(lengths) - lengths)[document], length


def _by_source(
    identity: pa.Table,
    begin: np.ndarray,
    lengths: np.ndarray,
    part_document: np.ndarray,
    part_start: np.ndarray,
    tokens: np.ndarray,
    fim_ids: list[int] | None,
) -> dict[str, dict[str, int]]:
    """Documents, tokens and, where the tokenizer has FIM tokens, parts by mode (as they begin) of each source."""
    firsts = identity.column("copy").to_numpy() == 0
    found: dict[str, dict[str, int]] = {}
    if not len(lengths):
        return found
    opening = begin[part_document] + part_start
    for source, members in by_source(identity.column("source")):
        found[source] = {"documents": int(firsts[members].sum()), "tokens": int(lengths[members].sum())}
        if fim_ids:
            mine = opening[np.isin(part_document, members)]
            filled = tokens[mine] == fim_ids[0]
            suffix_first = filled & (tokens[np.minimum(mine + 1, len(tokens) - 1)] == fim_ids[1])
            modes = {"left_to_right": ~filled, "psm": filled & ~suffix_first, "spm": suffix_first}
            found[source] |= {mode: int(mask.sum()) for mode, mask in modes.items()}
    return found


def _full(
    values: np.ndarray,
    first: np.ndarray,
    length: np.ndarray,
    offsets: np.ndarray,
    seq_len: int,
    padding: int,
    field: pa.Field,
) -> pa.Array:
    """A fixed-size list column: the pieces of each row one after the other, then padding."""
    from pipeline.kernels.packing import copy_tokens

    out = np.full((len(offsets) - 1, seq_len), padding, values.dtype)
    copy_tokens(values, first, length, offsets, out)
    return pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), type=field.type)


def _writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # Parquet keeps 16-bit ids as 32-bit integers; splitting the bytes into streams makes the upper ones vanish
    split = [f"{name}.list.element" for name in ("input_ids", "doc_lengths") if name in schema.names]
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[f"{name}.list.element" for name in schema.names if name.startswith("group_")],
        use_byte_stream_split=split,
        write_statistics=False,
    )


def _lists(offsets: np.ndarray, values: pa.Array, type_: pa.ListType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=type_)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
