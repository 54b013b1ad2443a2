"""The step shapes. A step is its settings: a frozen class whose fields are named as in the paper.

    Source      files or a crawl in, RECORD or DOCUMENT rows out
    Transform   one row in, the same row changed out (or a reason why it goes)
    Filter      scores per document, and rules over the scores
    Corpus      needs every document at once: deduplication, corpus statistics, tokenizer training, packing

`filters.gopher_quality` in a recipe is the one Step class in `pipeline/filters/gopher_quality.py`; there is no
registry. Step modules import light: numba, models and Ray are imported inside the methods that use them.

All work is a pure function of its input. Batch size, order of arrival, retries and the number of workers
must not change a single output byte: no state between batches, no clock, no unseeded randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cluster.settings import Settings
from pipeline.schema import Row

if TYPE_CHECKING:
    from pipeline.run import StageRun

T = TypeVar("T")


class Documents:
    """A batch of rows, and what was computed from it once for all steps that look at it.

    Words, lines and n-gram hashes are the costly part of filtering; the first filter that needs them pays:
    `docs.once("words", lambda: words(*docs.text_buffers()))`.
    """

    def __init__(self, batch: pa.RecordBatch):
        self.batch = batch
        self._computed: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def column(self, name: str) -> pa.Array:
        return self.batch.column(name)

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """The value under `key`, computed at the first call."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]  # type: ignore[no-any-return]

    def text_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [n + 1], bytes uint8) of the text column, without a copy; right for sliced arrays too."""
        return self.once("text_buffers", lambda: string_buffers(self.batch.column("text")))


def string_buffers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [n + 1], bytes uint8) of a string or binary array; offsets index into the bytes.

    Zero copy for 64-bit offsets. The first offset of a sliced array is not 0. Nulls are empty strings.
    """
    if not (pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)):
        array = array.cast(pa.large_binary() if pa.types.is_binary(array.type) else pa.large_string())
    if array.null_count:
        array = array.fill_null("" if pa.types.is_large_string(array.type) else b"")
    _, offsets, data = array.buffers()
    # Read-only in every case, because numba compiles a kernel anew for writable arrays.
    nothing = np.frombuffer(b"", np.uint8)
    if len(array) == 0 or offsets is None:
        return np.frombuffer(bytes(8), np.int64), nothing
    view = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return view, np.frombuffer(data, np.uint8) if data is not None else nothing


@dataclass
class Verdict:
    """What becomes of each row of a batch; all arrays have the batch's length.

    reason     object: None keeps the row, a string removes it under that name (snake_case, no values inside)
    score      float64: the value that decided, NaN where there is none
    threshold  float64: the limit that it crossed, NaN where there is none
    match_id   object or None: doc_id (bytes) of the document that this one duplicates
    error      object or None: a text where the row *failed* (it is quarantined with its bytes, not removed)
    """

    reason: np.ndarray
    score: np.ndarray
    threshold: np.ndarray
    match_id: np.ndarray | None = None
    error: np.ndarray | None = None

    @classmethod
    def keep(cls, rows: int) -> Verdict:
        """A verdict that keeps all; set entries of its arrays to remove."""
        nan = np.full(rows, np.nan)
        return cls(np.full(rows, None, object), nan, nan.copy())

    @classmethod
    def because(cls, reasons: Sequence[str | None]) -> Verdict:
        """A verdict from one reason or None per row, without scores."""
        verdict = cls.keep(len(reasons))
        verdict.reason[:] = reasons
        return verdict

    def fail(self, row: int, error: str, reason: str = "error") -> None:
        """Mark a row as failed."""
        if self.error is None:
            self.error = np.full(len(self.reason), None, object)
        self.reason[row], self.error[row] = reason, error


class Rule(NamedTuple):
    """A document stays while at_least <= score <= at_most; otherwise it is removed for `reason`.

    NaN scores stay: a score that is not defined for a document (no words, say) is not a reason against it.
    A bound that must be strict is written with numpy.nextafter by the filter; None is no bound.
    """

    reason: str
    score: str
    at_least: float | None = None
    at_most: float | None = None


class Step(Settings):
    """One entry of a recipe."""

    takes: ClassVar[Row]
    gives: ClassVar[Row]

    @classmethod
    def step_name(cls) -> str:
        """`folder.file`, as recipes call it."""
        return ".".join(cls.__module__.split(".")[-2:])

    def check(self) -> None:
        """Refuse at plan time what cannot work (a missing file, settings that contradict); raises RecipeError."""

    def warm(self, artifacts: Mapping[str, str]) -> None:
        """Load models and compile kernels, once per worker process, before its first batch.

        `artifacts` maps a name ("tokenizer") to the folder or file that an earlier step of the recipe made.
        """

    def needs(self) -> Sequence[str]:
        """Artifacts that an earlier step of the recipe must make for this one ("tokenizer")."""
        return ()

    def provides(self) -> dict[str, str]:
        """Artifacts that this step's own settings name: {"tokenizer": path}, for the steps after it."""
        return {}

    def input_identity(self) -> list[Any]:
        """What besides the settings decides the output (files with sizes and times); JSON, part of the fingerprint."""
        return []


class Source(Step):
    """Rows from files or from a crawl. Override `tasks` and `read`."""

    takes: ClassVar[Row] = Row.NOTHING
    gives: ClassVar[Row] = Row.RECORD

    def prepare(self, stage: StageRun) -> None:
        """Work before `tasks` (crawling into WARC files), resumable through `stage.map`."""

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        """What to read, as JSON mappings in a stable order; {"bytes": n} in each lets the largest start first."""
        raise NotImplementedError

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        """The rows of one task, every record of the file among them.

        A record that is no document (an image, a redirect) is yielded with its reason in the verdict; damage in
        the file is a row with an error. So the count of rows in is the count of records there were.
        """
        raise NotImplementedError


class Transform(Step):
    """Changes rows one by one. Override `transform`."""

    takes: ClassVar[Row] = Row.DOCUMENT
    gives: ClassVar[Row] = Row.DOCUMENT

    def transform(self, docs: Documents) -> tuple[pa.RecordBatch, Verdict | None]:
        """The same rows in the same order, changed; a verdict where some must go (their content is then unused)."""
        raise NotImplementedError


class Filter(Step):
    """Judges documents. Override `scores` and `rules`; or `verdict` when bounds differ per document."""

    takes: ClassVar[Row] = Row.DOCUMENT
    gives: ClassVar[Row] = Row.DOCUMENT
    bounds: ClassVar[frozenset[str]] = frozenset()
    """Fields that are limits for `verdict` without being in a rule; `whatif` may change them."""

    def warm(self, artifacts: Mapping[str, str]) -> None:
        """Score a tiny batch, so that kernels are compiled (or read from their cache) before the first real one."""
        from pipeline.schema import DOCUMENT

        row = {"doc_id": bytes(16), "source": "", "text": "A few words, 几个字。\n\n- and a line"}
        self.scores(Documents(pa.RecordBatch.from_pylist([row], schema=DOCUMENT)))

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        """Named numeric arrays of the batch's length. They must not depend on the thresholds."""
        raise NotImplementedError

    def rules(self) -> list[Rule]:
        """The rules over those scores, cheapest to explain first: the first one broken is the reason."""
        raise NotImplementedError

    def columns(self, docs: Documents) -> dict[str, pa.Array]:
        """Columns of the batch to replace or append besides scores (the language that was found)."""
        return {}

    def verdict(self, docs: Documents, scores: Mapping[str, np.ndarray]) -> Verdict:
        """The first rule that each document breaks. Also used alone, to try other thresholds on stored scores."""
        verdict = Verdict.keep(len(docs))
        for rule in reversed(self.rules()):
            values = np.asarray(scores[rule.score], np.float64)
            for limit, side in ((rule.at_least, np.less), (rule.at_most, np.greater)):
                if limit is None:
                    continue
                broken = side(values, limit)
                verdict.reason[broken] = rule.reason
                verdict.score[broken] = values[broken]
                verdict.threshold[broken] = limit
        return verdict


class Corpus(Step):
    """Looks at the whole corpus: a barrier. Override `decide`, and `apply` where documents change or go.

    `decide` runs in the driver and orchestrates phases: `stage.map("signatures", tasks)` calls
    `self.signatures(task, work)` on the workers for each task, and returns the results in order. Finished
    tasks are not run again after a crash. Data cross workers through `pipeline.exchange` only.
    """

    takes: ClassVar[Row] = Row.DOCUMENT
    gives: ClassVar[Row] = Row.DOCUMENT
    makes: ClassVar[str | None] = None
    """Name of the artifact that `decide` returns a path to ("tokenizer"), for later steps' `warm`."""

    changes_rows: ClassVar[bool] = True
    """False where rows pass through untouched (tokenizer training): then `apply` is not called."""

    def decide(self, stage: StageRun) -> dict[str, Any]:
        """Do the work and return JSON: what `apply` needs to find its decisions, or {"path": …} of the artifact."""
        raise NotImplementedError

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        """Carry out the decisions on rows [first_row, first_row + len) of a partition, as a Transform does."""
        raise NotImplementedError

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table | None:
        """The rows of `decide`'s result that concern one partition, read on the worker."""
        raise NotImplementedError


@dataclass
class Work:
    """What a phase method is given besides its task: where to write, and how much memory it may use."""

    folder: str
    """Folder of the phase on the storage. Write only names from `path`; they are committed with the result."""

    attempt: str
    """Unique per try, so that two tries of one task can never write the same file."""

    memory_bytes: int
    seed: int
    batch_documents: int
    artifacts: dict[str, str] = field(default_factory=dict)
    progress: Callable[[int], None] = lambda rows: None
    """Call with the rows done since the last call, about once a second at least: it is also the heartbeat."""

    def path(self, name: str) -> str:
        """A path for an output of this task; it belongs to nobody until the result that names it is committed."""
        stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
        return f"{self.folder}/{stem}-{self.attempt}{dot}{suffix}"
