"""Packing of a whole corpus: counts, spreads documents into buckets by hash, packs each bucket into one shard.

What is in a bucket follows from the data and the seed alone: bucket and order come from a hash of (doc_id, seed),
the number of buckets from the total of tokens. So the packed bytes are the same for any number of workers,
partitions and batches. The steps of this folder differ only in how they lay documents into rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError, RecipeError, RunError
from pipeline import exchange
from pipeline.ledger import Ledger
from pipeline.pack import dataset
from pipeline.pack.dataset import TRAIN, VALIDATION
from pipeline.pack.rows import SPREAD, spread_schema
from pipeline.schema import TOKENS, token_dtype
from pipeline.step import Verdict, Work, string_buffers
from pipeline.tokens.order import document_keys, mixed, salt
from pipeline.tokens.vocabulary import FIM, Vocabulary, read_vocabulary, tokenizer_folder

COUNTED = ("documents", TRAIN, VALIDATION, "train_documents", "validation_documents", "masks")


class PackSettings(Protocol):
    """The fields that every packing step has."""

    @property
    def seq_len(self) -> int: ...
    @property
    def validation_share(self) -> float: ...
    @property
    def shard_tokens(self) -> int: ...
    @property
    def min_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def groups(self) -> list[str]: ...
    @property
    def tokenizer(self) -> str | None: ...
    def step_name(self) -> str: ...


class Copies:
    """The copies of the documents of a batch that are to be packed; all arrays are int64 [copies].

    Without a column `copies` (which `pack.mix` adds) there is one of each. A column `pieces` (which `tokens.fim` adds)
    lists per copy the lengths of its parts: then input_ids holds the copies one after the other.

    row      the document's row in the batch      copy    0, 1, … within the document
    tokens   in this copy
    """

    def __init__(self, batch: pa.RecordBatch):
        names = batch.schema.names
        lengths = batch.column("n_tokens").to_numpy().astype(np.int64)
        count = (
            batch.column("copies").to_numpy().astype(np.int64) if "copies" in names else np.ones(len(lengths), np.int64)
        )
        self.pieces: pa.ListArray | None = batch.column("pieces") if "pieces" in names else None
        if self.pieces is not None and not np.array_equal(pc.list_value_length(self.pieces).to_numpy(), count):
            raise DataError(
                "the column 'pieces' lists other numbers of copies than the column 'copies'; put pack.mix first"
            )
        self.row = np.repeat(np.arange(len(lengths)), count)
        self.copy = np.arange(len(self.row)) - np.repeat(np.cumsum(count) - count, count)
        self.tokens = lengths[self.row]
        if self.pieces is not None:
            inner = self.pieces.flatten()
            self.tokens = np.zeros(len(inner), np.int64)
            np.add.at(self.tokens, pc.list_parent_indices(inner).to_numpy(), inner.flatten().to_numpy())

    def table(self, batch: pa.RecordBatch, itemsize: int, groups: Sequence[str]) -> pa.Table:
        """SPREAD rows, the key left out, one per copy."""
        row = pa.array(self.row)
        masked = "loss_mask" in batch.schema.names
        if self.pieces is None:
            ids, pieces = batch.column("input_ids").take(row), pa.nulls(len(row), SPREAD.field("pieces").type)
        else:
            offsets, data = string_buffers(batch.column("input_ids"))
            used = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.tokens)]) * itemsize + offsets[0]
            buffers = [None, pa.py_buffer(used), pa.py_buffer(data)]
            ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(row), buffers)
            pieces = self.pieces.flatten().cast(SPREAD.field("pieces").type)
        mask = batch.column("loss_mask").take(row) if masked else pa.nulls(len(row), pa.large_binary())
        identity = [
            batch.column("doc_id").take(row),
            batch.column("source").take(row),
            pa.array(self.copy.astype(np.int32)),
        ]
        schema = spread_schema(groups).remove(0)
        values = [batch.column(name).cast(pa.string()).take(row) for name in schema.names[len(SPREAD) - 1 :]]
        return pa.Table.from_arrays([*identity, ids, pieces, mask, *values], schema=schema)


def pack_corpus(step: PackSettings, stage: Any) -> dict[str, Any]:
    """`decide` of a packing step: three phases named count, spread and fill, then dataset.json."""
    vocabulary = read_vocabulary(tokenizer_folder(step.tokenizer, stage.artifacts, step.step_name()))
    counted = stage.map("count", [{"partition": p, "bytes": p["bytes"]} for p in stage.partitions])
    plan = stage.fix("buckets", _plan(step, vocabulary, counted, stage.memory_bytes))
    tasks = [{"partition": p, "plan": plan, "bytes": p["bytes"]} for p in stage.partitions]
    spread = stage.map("spread", tasks)
    by_bucket = _by_bucket([result["index"] for result in spread], plan[TRAIN] + plan[VALIDATION])
    reduce = []
    for bucket, indices in enumerate(by_bucket):
        task = {"bucket": bucket, "indices": indices, "plan": plan}
        reduce.append({**task, "bytes": exchange.bucket_bytes(indices, bucket)})
    shards = stage.map("fill", reduce)
    removed: dict[str, int] = {}
    for result in spread:
        for reason, n in result["removed"].get(step.step_name(), {}).items():
            removed[reason] = removed.get(reason, 0) + n
    folder = storage.join(stage.folder, "packed")
    made = dataset.publish(folder, step.seq_len, vocabulary, plan, shards, stage.fingerprint)
    packed = made["documents"] + made.get(VALIDATION, {}).get("documents", 0)
    documents = sum(result["documents"] for result in counted)
    if packed + sum(removed.values()) != documents:
        raise RunError(
            f"{step.step_name()}: {documents} documents came in, but {packed} were packed and {removed} removed: "
            "are there two documents with one doc_id?"
        )
    return {
        "path": folder,
        "documents": packed,
        "removed": removed,
        "ledger": [result["ledger"] for result in spread if result["ledger"]],
        "report": dataset.report(shards, step.seq_len),
    }


def count(step: PackSettings, task: dict[str, Any], work: Work) -> dict[str, Any]:
    """Documents and tokens per split in one partition, copies counted."""
    totals = dict.fromkeys(COUNTED, 0)
    for batch in _read(task["partition"], work, ("doc_id", "n_tokens", "copies", "pieces", "loss_mask", *step.groups)):
        _check_groups(step, batch)
        copies = Copies(batch)
        held = _held_out(step, batch, work.seed)
        fits = _verdict(step, batch, copies).reason == None  # noqa: E711 (an array)
        rows, validation = copies.row, held[copies.row]
        kept = fits[rows] & (~validation | (copies.copy == 0))
        totals["documents"] += batch.num_rows
        totals["masks"] += batch.num_rows if "loss_mask" in batch.schema.names else 0
        for split, chosen in ((TRAIN, kept & ~validation), (VALIDATION, kept & validation)):
            totals[split] += int(copies.tokens[chosen].sum())
            totals[f"{split}_documents"] += int((chosen & (copies.copy == 0)).sum())
        work.progress(batch.num_rows)
    return totals


def spread(step: PackSettings, task: dict[str, Any], work: Work) -> dict[str, Any]:
    """Send the documents of one partition to their buckets; those too short go to the ledger."""
    plan = task["plan"]
    itemsize = np.dtype(plan["dtype"]).itemsize
    ledger = Ledger(work.path)
    with exchange.Spread(
        work.path("tokens.arrow"),
        spread_schema(plan["groups"]),
        plan[TRAIN] + plan[VALIDATION],
        memory_bytes=work.memory_bytes,
    ) as out:
        wanted = dict.fromkeys((*TOKENS.names, "copies", "pieces", "loss_mask", *plan["groups"]))
        for batch in _read(task["partition"], work, tuple(wanted)):
            _check_lengths(task["partition"]["file"], batch, itemsize)
            copies = Copies(batch)
            verdict = _verdict(step, batch, copies)
            goes = verdict.reason != None  # noqa: E711 (an array)
            ledger.record(step.step_name(), batch, verdict, goes)
            held = _held_out(step, batch, work.seed)[copies.row]
            chosen = np.flatnonzero(~goes[copies.row] & (~held | (copies.copy == 0)))
            table = copies.table(batch, itemsize, plan["groups"]).take(pa.array(chosen))
            keys = document_keys(_one_array(table.column("doc_id")), work.seed, "packing", copies.copy[chosen])
            bucket = exchange.bucket_of(keys, plan[TRAIN])
            if plan[VALIDATION]:
                bucket = np.where(held[chosen], plan[TRAIN] + exchange.bucket_of(keys, plan[VALIDATION]), bucket)
            out.add(table.add_column(0, SPREAD.field("key"), pa.array(keys)), bucket)
            work.progress(batch.num_rows)
    return {"index": out.index, **ledger.close()}


def _plan(
    step: PackSettings, vocabulary: Vocabulary, counted: Sequence[Mapping[str, int]], memory_bytes: int
) -> dict[str, Any]:
    """Everything that the phases must agree on, as JSON."""
    dtype = token_dtype(vocabulary.size)
    total = {name: sum(result[name] for result in counted) for name in COUNTED}
    if not total["train_documents"]:
        raise RunError(f"{step.step_name()}: there is no document to pack; look at the ledger for what removed them")
    if step.validation_share > 0 and not total["validation_documents"]:
        raise RunError(
            f"{step.step_name()}: validation_share {step.validation_share} chose none of {total['documents']} "
            "documents (each by its hash); raise it, or set it to 0 to train without a held-out split"
        )
    needed = 6 * step.shard_tokens * np.dtype(dtype).itemsize
    if needed > memory_bytes and total[TRAIN] * 6 * np.dtype(dtype).itemsize > memory_bytes:
        raise RecipeError(
            f"{step.step_name()}: shard_tokens {step.shard_tokens:,} needs {needed / 2**20:,.0f} MiB per worker, which "
            f"has {memory_bytes / 2**20:,.0f} MiB; lower shard_tokens or raise memory_per_worker"
        )
    return {
        TRAIN: max(1, -(-total[TRAIN] // step.shard_tokens)),
        VALIDATION: -(-total[VALIDATION] // step.shard_tokens),
        "seq_len": step.seq_len,
        "vocab_size": vocabulary.size,
        "dtype": dtype,
        "pad_id": vocabulary.pad_id,
        "loss_mask": total["masks"] > 0,
        "groups": list(dict.fromkeys(step.groups)),
        "fim_ids": [vocabulary.specials[name] for name in FIM]
        if all(name in vocabulary.specials for name in FIM)
        else None,
    }


def _read(partition: dict[str, Any], work: Work, wanted: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    from pipeline import shards

    if partition["file"] is None:
        return
    with storage.open_read(partition["file"]) as source:
        present = pq.read_schema(source).names
    columns = [name for name in wanted if name in present]
    yield from shards.read(partition, columns=columns, batch_documents=work.batch_documents)


def _verdict(step: PackSettings, batch: pa.RecordBatch, copies: Copies) -> Verdict:
    """Which documents are too short or too long to be packed, by the tokens of one copy."""
    verdict = Verdict.keep(batch.num_rows)
    tokens = np.zeros(batch.num_rows, np.int64)
    tokens[copies.row[copies.copy == 0]] = copies.tokens[copies.copy == 0]
    limits = [("too_few_tokens", tokens < step.min_tokens, step.min_tokens)]
    if step.max_tokens is not None:
        limits.append(("too_many_tokens", tokens > step.max_tokens, step.max_tokens))
    for reason, broken, limit in limits:
        verdict.reason[broken], verdict.score[broken], verdict.threshold[broken] = reason, tokens[broken], limit
    return verdict


def _held_out(step: PackSettings, batch: pa.RecordBatch, seed: int) -> np.ndarray:
    """Which documents are for validation: by their hash alone, so that none changes sides when the corpus grows."""
    keys = document_keys(batch.column("doc_id"), seed, "validation")
    return mixed(keys ^ salt(seed, "validation")) < np.uint64(min(step.validation_share * 2.0**64, 2.0**64 - 2048))


def _check_groups(step: PackSettings, batch: pa.RecordBatch) -> None:
    """Refuse groups that the tokens do not have, or whose values are no names. Raises DataError."""
    for name in step.groups:
        if name not in batch.schema.names:
            raise DataError(
                f"{step.step_name()}: groups names the column '{name}', which the tokens have not; carry it along: "
                f"tokens.encode: {{keep: [{name}]}}, or leave it out of groups"
            )
        kind = batch.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise DataError(
                f"{step.step_name()}: groups names the column '{name}' of {kind}; a group is a text or a whole number"
            )


def _by_bucket(indices: Sequence[dict[str, Any]], buckets: int) -> list[list[dict[str, Any]]]:
    """`exchange.only` for every bucket at once, in one pass over the runs."""
    found: list[list[dict[str, Any]]] = [[] for _ in range(buckets)]
    for index in indices:
        runs: dict[int, list[Any]] = {}
        for run in index["runs"]:
            runs.setdefault(run[0], []).append(run)
        for bucket, mine in runs.items():
            found[bucket].append({"file": index["file"], "rows": index["rows"], "runs": mine})
    return found


def _check_lengths(file: str, batch: pa.RecordBatch, itemsize: int) -> None:
    offsets, _ = string_buffers(batch.column("input_ids"))
    expected = batch.column("n_tokens").to_numpy().astype(np.int64) * itemsize
    wrong = np.flatnonzero(np.diff(offsets) != expected)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{file}: document {batch.column('doc_id')[row].as_py().hex()} has {int(np.diff(offsets)[row])} bytes of "
            f"input_ids, but its n_tokens says {int(expected[row])} ({itemsize} bytes a token); was it encoded with "
            "another tokenizer than the one that packing uses?"
        )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
