"""PACKED Parquet to tensors: one global row cursor, whatever the number of ranks.

Rows are shuffled when they are written, so training reads them in order, and the place in the data is one
number: rows consumed. Row `c` of the run is row `c % rows` of epoch `c // rows`; an optimiser step takes the next
`rows_per_step` rows, and which rank computes which of them changes nothing.
"""

from __future__ import annotations

import bisect
import json
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster import storage
from cluster.errors import DataError
from pipeline.schema import DATASET_FILE, DATASET_FORMAT

IGNORE = -100
"""The target of a position that no loss looks at."""


@dataclass(frozen=True)
class Batch:
    """Some packed rows as tensors, all [rows, seq_len].

    input_ids      int64
    position_ids   int64: 0 at the first token of every document; padding counts as a document of its own
    doc_index      int32: number of the document within its row; attention stays within equal numbers
    targets        int64: the next token of the same document, IGNORE at its end, on padding, and where loss_mask is 0
    """

    input_ids: Tensor
    position_ids: Tensor
    doc_index: Tensor
    targets: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors by name, [rows, seq_len] or [rows, most documents in a row]; 0 where there is nothing."""

    @property
    def rows(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def parts(self) -> Tensor | None:
        """[rows] int64: which data set of a mixture each row is from; None when there is but one."""
        found = self.extra.get("part")
        return None if found is None else found[:, 0]

    def target_count(self) -> int:
        """How many positions have a target: the denominator of a per-token loss."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; pinned memory lets the copy overlap with compute."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).pin_memory().to(device, non_blocking=True) for name in PACKED}
        extra = {name: value.pin_memory().to(device, non_blocking=True) for name, value in self.extra.items()}
        return replace(self, **moved, extra=extra)


PACKED = ("input_ids", "position_ids", "doc_index", "targets")
"""The tensors that every batch has."""


@dataclass(frozen=True)
class StepRows:
    """One rank's share of one optimiser step: micro-batches, equally many on every rank."""

    first_row: int
    """Global number of the step's first row, over all ranks."""
    next_row: int
    """The cursor after the step."""
    micro_batches: list[Batch]
    begins: bool = True
    """Whether a run may go on from here: False within an iteration of several steps over the same samples."""
    figures: dict[str, float] = field(default_factory=dict)
    """To log with the step, the same on every rank."""
    state: dict[str, float] = field(default_factory=dict)
    """What the objective must be told to go on from here, beside the cursor."""


@dataclass(frozen=True)
class Rows:
    """Rows as they lie in the file: input_ids [rows, seq_len], document lengths per row, loss mask or None."""

    input_ids: np.ndarray
    doc_lengths: list[np.ndarray]
    loss_mask: np.ndarray | None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns beyond the schema, one value per token or per document (then padded with 0 to [rows, documents])."""


OPEN = 16
"""Shards of a data set that are open at once: a corpus may have more than a process may open files."""


class PackedRows:
    """A PACKED data set (or its validation split) with random access to rows.

    Footers are read when a shard is first touched, so opening and seeking cost the same at row 0 and at row 10⁹.
    Threads may share it: the loader reads ahead while an objective looks at a row or an alarm asks for documents.
    """

    def __init__(self, folder: str, split: str | None = None):
        """`folder` holds dataset.json (local or s3://). Raises DataError when it is absent or of another format."""
        self.folder = storage.absolute(folder)
        path = storage.join(self.folder, DATASET_FILE)
        try:
            self.about: dict[str, Any] = json.loads(storage.read_bytes(path))
        except FileNotFoundError:
            raise DataError(f"{path}: not there; `data` must be the packed/ folder of a pipeline run") from None
        if self.about.get("format") != DATASET_FORMAT:
            raise DataError(f"{path}: format {self.about.get('format')!r}, this version reads {DATASET_FORMAT!r}")
        part = self.about if split is None else self.about.get(split)
        if part is None:
            raise DataError(f"{path}: no split '{split}'; pack with a held-out share to get one")
        self.seq_len: int = self.about["seq_len"]
        self.vocab_size: int = self.about["vocab_size"]
        self.rows: int = part["rows"]
        self.tokens: int = part["tokens"]
        self._shards: list[str] = [storage.join(self.folder, shard["path"]) for shard in part["shards"]]
        self._ends = list(accumulate(int(shard["rows"]) for shard in part["shards"]))
        if (self._ends[-1] if self._ends else 0) != self.rows:
            raise DataError(f"{path}: {self.rows} rows in all, but the shards sum to {self._ends[-1:]}")
        if not self.rows:
            raise DataError(f"{path}: holds no rows")
        self._files: OrderedDict[int, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, tuple[str, ...] | None], pa.Table] = OrderedDict()
        self._reading = threading.Lock()
        """Arrow's readers of one file do not bear two threads."""

    def has_split(self, split: str) -> bool:
        """Whether dataset.json names this split and it has rows."""
        return bool(self.about.get(split, {}).get("rows"))

    @property
    def tokenizer(self) -> str:
        """The folder that AutoTokenizer opens."""
        return storage.join(self.folder, self.about["tokenizer"])

    def read(self, first: int, count: int) -> Rows:
        """Rows [first, first + count) of the run; past the end the next epoch begins at row 0."""
        pieces: list[pa.Table] = []
        while count > 0:
            inside = first % self.rows
            piece = self._slice(inside, count)
            pieces.append(piece)
            first, count = first + piece.num_rows, count - piece.num_rows
        table = pa.concat_tables(pieces).combine_chunks() if pieces else None
        if table is None:
            one = self.read(0, 1).extra if self.about.get("answers") or self.about.get("teacher") else {}
            return Rows(np.zeros((0, self.seq_len), np.int64), [], None, {name: v[:0] for name, v in one.items()})
        ids = _fixed(table.column("input_ids"), self.seq_len).astype(np.int64)
        lengths = [np.asarray(row, np.int64) for row in table.column("doc_lengths").to_pylist()]
        for row, of_row in enumerate(lengths):
            if of_row.sum() > self.seq_len or (of_row < 1).any():
                raise DataError(
                    f"{self.folder}: a row's doc_lengths {of_row.tolist()} do not fit seq_len {self.seq_len}"
                )
            if ids[row].max(initial=0) >= self.vocab_size:
                raise DataError(f"{self.folder}: token {ids[row].max()} outside the vocabulary of {self.vocab_size}")
        mask = None
        if "loss_mask" in table.column_names:
            mask = _fixed(table.column("loss_mask"), self.seq_len).astype(bool)
        return Rows(ids, lengths, mask, _extra(table, lengths))

    def documents(self, first: int, count: int) -> list[list[bytes]]:
        """doc_ids of rows [first, first + count) of the run: which documents a checkpoint has seen."""
        return self._column("doc_ids", first, count)

    @property
    def groups(self) -> list[str]:
        """The columns whose value each document has beside it (source, language); old data sets have none."""
        return list(self.about.get("groups", []))

    def group_values(self, name: str, first: int, count: int) -> list[list[str | None]]:
        """The value of a group's column for each document of rows [first, first + count)."""
        return self._column(f"group_{name}", first, count)

    def _column(self, name: str, first: int, count: int) -> list[Any]:
        """One column of rows [first, first + count) of the run, alone."""
        out: list[Any] = []
        while count > 0:
            piece = self._slice(first % self.rows, count, (name,))
            out += piece.column(name).to_pylist()
            first, count = first + piece.num_rows, count - piece.num_rows
        return out

    def _slice(self, row: int, count: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """Up to `count` rows from `row` on, within one row group; of some columns, or all that training reads."""
        with self._reading:
            group, inside = self._group(row, columns)
        return group.slice(inside, count)

    def _group(self, row: int, columns: tuple[str, ...] | None) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row's place in it."""
        shard = bisect.bisect_right(self._ends, row)
        start = self._ends[shard - 1] if shard else 0
        if shard not in self._files:
            file = pq.ParquetFile(storage.open_read(self._shards[shard]))
            ends = list(accumulate(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)))
            expected = self._ends[shard] - start
            if (ends[-1] if ends else 0) != expected:
                raise DataError(f"{self._shards[shard]}: {ends[-1:]} rows, dataset.json says {expected}")
            self._files[shard] = (file, ends)
            if len(self._files) > OPEN:
                _, (old, _) = self._files.popitem(last=False)
                old.close(force=True)
        file, ends = self._files[shard]
        group = bisect.bisect_right(ends, row - start)
        inside = row - start - (ends[group - 1] if group else 0)
        key = (shard, group, columns)
        if key not in self._groups:
            names = file.schema_arrow.names
            wanted = columns or [name for name in names if name != "doc_ids" and not name.startswith("group_")]
            self._groups[key] = file.read_row_group(group, columns=list(wanted))
            while len(self._groups) > 2:
                self._groups.popitem(last=False)
        return self._groups[key], inside


def _fixed(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A fixed-size-list column as [rows, width]."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


_SCHEMA = ("input_ids", "doc_lengths", "doc_ids", "loss_mask")


def _extra(table: pa.Table, lengths: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The columns that answers have beside the schema's, and `ends`: one past the last token of each document."""
    names = [name for name in table.column_names if name not in _SCHEMA]
    if not names:
        return {}
    extra = {"ends": padded([np.cumsum(of_row) for of_row in lengths])}
    for name in names:
        column = table.column(name)
        if pa.types.is_fixed_size_list(column.type):
            extra[name] = _fixed(column, column.type.list_size)
            continue
        kind = column.type.value_type.to_pandas_dtype()
        extra[name] = padded([np.asarray(row, kind) for row in column.to_pylist()])
        if extra[name].shape != extra["ends"].shape:
            raise DataError(f"column {name}: values for {extra[name].shape} documents, rows have {extra['ends'].shape}")
    return extra


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Vectors (or matrices) of several lengths as one array, zeros behind the shorter ones."""
    out = np.zeros((len(rows), max((len(row) for row in rows), default=0)), rows[0].dtype if rows else np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out


def collate(rows: Rows) -> Batch:
    """Rows to tensors: positions restart, targets are cut at document borders. No Python per document."""
    ids = rows.input_ids
    n, width = ids.shape
    lengths: list[np.ndarray] = []
    counts = np.zeros(n, np.int64)
    used = np.zeros(n, np.int64)
    for i, of_row in enumerate(rows.doc_lengths):
        used[i] = of_row.sum()
        rest = width - used[i]
        lengths.append(np.append(of_row, rest) if rest else of_row)
        counts[i] = len(lengths[-1])
    flat = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    ends = np.cumsum(flat)
    positions = np.arange(n * width) - np.repeat(ends - flat, flat)
    within_row = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    doc_index = np.repeat(within_row, flat).astype(np.int32)
    targets = np.full(n * width, IGNORE, np.int64)
    targets[:-1] = ids.reshape(-1)[1:]
    targets[ends - 1] = IGNORE
    targets = targets.reshape(n, width)
    targets[np.arange(width)[None, :] >= used[:, None]] = IGNORE
    if rows.loss_mask is not None:
        seen = np.zeros((n, width), bool)
        seen[:, :-1] = rows.loss_mask[:, 1:]
        targets[~seen] = IGNORE
    shape = (n, width)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions.reshape(shape)),
        torch.from_numpy(doc_index.reshape(shape)),
        torch.from_numpy(targets),
        {name: torch.from_numpy(np.array(values)) for name, values in rows.extra.items()},
    )


def share_of(rank: int, world: int, rows: int, micro_rows: int) -> list[range]:
    """The rows of a step, as offsets, that one rank computes, in micro-batches; some may be short or empty.

    Every rank gets the same number of micro-batches, because ZeRO's collectives need it. The union over ranks is
    range(rows), each row once.

    >>> [share_of(r, 2, 6, 2) for r in range(2)]
    [[range(0, 2), range(2, 3)], [range(3, 5), range(5, 6)]]
    """
    start, end = rows * rank // world, rows * (rank + 1) // world
    most = max(rows * (r + 1) // world - rows * r // world for r in range(world))
    steps = max(1, -(-most // micro_rows))
    return [range(min(start + i * micro_rows, end), min(start + (i + 1) * micro_rows, end)) for i in range(steps)]


def filled_up(batch: Batch, rows: int, seq_len: int) -> Batch:
    """The batch with empty rows (no target) added, so that shapes are equal on all ranks and steps."""
    missing = rows - batch.rows
    if missing <= 0:
        return batch
    blank = Batch(
        torch.zeros((missing, seq_len), dtype=torch.int64),
        torch.arange(seq_len).expand(missing, -1).contiguous(),
        torch.zeros((missing, seq_len), dtype=torch.int32),
        torch.full((missing, seq_len), IGNORE, dtype=torch.int64),
    )
    joined = {name: torch.cat([getattr(batch, name), getattr(blank, name)]) for name in PACKED}
    extra = {name: torch.cat([v, v.new_zeros((missing, *v.shape[1:]))]) for name, v in batch.extra.items()}
    return Batch(**joined, extra=extra)


class RowSource(Protocol):
    """What a loader reads from: PackedRows, or a Mixture of them."""

    seq_len: int

    def read(self, first: int, count: int) -> Rows:
        """Rows [first, first + count) of the run."""
        ...

    def documents(self, first: int, count: int) -> list[list[bytes]]:
        """doc_ids of rows [first, first + count)."""
        ...


def shared_out(
    data: RowSource, first_row: int, rows: int, micro_rows: int, *, rank: int = 0, world: int = 1
) -> StepRows:
    """One rank's share of rows [first_row, first_row + rows), as micro-batches of one shape."""
    parts = share_of(rank, world, rows, micro_rows)
    height = min(micro_rows, -(-rows // world))
    batches = [filled_up(collate(data.read(first_row + part.start, len(part))), height, data.seq_len) for part in parts]
    return StepRows(first_row, first_row + rows, batches)


class Loader:
    """The steps of one rank from a cursor on, read ahead in a thread. Iterate it; `close` it at the end.

    `waited` sums the seconds in which training stood still for data.
    """

    def __init__(
        self,
        data: RowSource,
        *,
        rows_per_step: int,
        micro_rows: int,
        rank: int = 0,
        world: int = 1,
        cursor: int = 0,
        ahead: int = 2,
        part: Callable[[Batch], Batch] | None = None,
    ):
        """`part` is done to every micro-batch, in the thread."""
        self._part = part
        self.data, self.rows_per_step, self.micro_rows = data, rows_per_step, micro_rows
        self.rank, self.world, self.cursor = rank, world, cursor
        self.waited = 0.0
        self._ready: queue.Queue[StepRows | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="rows", daemon=True)
        self._thread.start()

    def _read_ahead(self) -> None:
        cursor = self.cursor
        try:
            while not self._stop.is_set():
                step = shared_out(
                    self.data, cursor, self.rows_per_step, self.micro_rows, rank=self.rank, world=self.world
                )
                if self._part is not None:
                    step = replace(step, micro_batches=[self._part(batch) for batch in step.micro_batches])
                cursor = step.next_row
                self._put(step)
        except BaseException as error:
            self._put(error)

    def _put(self, item: StepRows | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        started = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, BaseException):
            raise item
        self.cursor = item.next_row
        return item

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()
        self._thread.join(timeout=10)
