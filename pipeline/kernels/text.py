"""What filters share: the words, lines and character counts of a batch, each computed once per batch.

Every function takes Documents and keeps its result there; the arrays are described by the dataclasses they return.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from pipeline.kernels import characters, lines, words
from pipeline.step import Documents

if TYPE_CHECKING:
    from pipeline.kernels.spacy_words import SpacyWords


Splitter = Literal["script", "space", "spacy", "unicode", "normal"]


def words_of(docs: Documents, splitter: Splitter) -> words.Words:
    """Words at white space, also by script (see `words.split_words`), as spaCy's English tokenizer has them, at
    Unicode's word boundaries, or in lower case without punctuation as RedPajama has them."""
    if splitter == "spacy":
        return docs.once("words:spacy", lambda: spacy_words().split(*docs.text_buffers())[0])
    if splitter in ("unicode", "normal"):
        from pipeline.kernels import normal_words, word_breaks

        split = word_breaks.split_words if splitter == "unicode" else normal_words.split_words
        return docs.once(f"words:{splitter}", lambda: split(*docs.text_buffers()))
    by_script = splitter == "script"
    return docs.once(f"words:{splitter}", lambda: words.split_words(*docs.text_buffers(), by_script=by_script))


@functools.lru_cache(maxsize=1)
def spacy_words() -> SpacyWords:
    """This process' spaCy tokenizer; the filters check that spaCy is installed."""
    from pipeline.kernels.spacy_words import SpacyWords

    return SpacyWords()


def lines_of(docs: Documents, *, universal: bool = False) -> lines.Lines:
    """Lines at line feeds, or at all of Unicode's line breaks: see `lines.split_lines`."""

    def compute() -> lines.Lines:
        if universal:
            return lines.universal_lines(lines_of(docs), *docs.text_buffers())
        return lines.split_lines(*docs.text_buffers(), universal=False)

    return docs.once(f"lines:{universal}", compute)


def tallies_of(docs: Documents) -> dict[str, np.ndarray]:
    """Counts of characters by kind, int64 [documents] under each name of `characters.TALLIES`."""

    def compute() -> dict[str, np.ndarray]:
        table = characters.tally(*docs.text_buffers())
        return {name: table[:, k] for k, name in enumerate(characters.TALLIES)}

    return docs.once("tallies", compute)


def chars_of(docs: Documents) -> np.ndarray:
    """Characters per document, int64."""
    found = lines_of(docs)
    return docs.once("chars", lambda: per_document(found.first, found.chars) + found.counts() - 1)


def newlines_of(docs: Documents) -> np.ndarray:
    """Line feeds per document, int64."""
    return lines_of(docs).counts() - 1


def marks_of(docs: Documents) -> tuple[np.ndarray, np.ndarray]:
    """("#", ellipses) per document, int64."""
    table = docs.once("marks", lambda: characters.count_marks(*docs.text_buffers()))
    return table[:, 0], table[:, 1]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole as float64, NaN where whole is 0."""
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole != 0)
    return out


def per_document(first: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of `values` (bool or integers, one per line or word) over each document, int64."""
    running = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=running[1:])
    return running[first[1:]] - running[first[:-1]]


def ends_with_ellipsis(docs: Documents, found: lines.Lines) -> np.ndarray:
    """Which lines end in "…" or "...", white space aside; bool per line."""
    _, data = docs.text_buffers()
    out = found.tail == 0x2026
    dots = np.flatnonzero((found.tail == ord(".")) & (found.strip_end - found.strip_start >= 3))
    end = found.strip_end[dots]
    out[dots] = (data[end - 2] == ord(".")) & (data[end - 3] == ord("."))
    return out


def ends_with_spaced_dots(docs: Documents, found: lines.Lines) -> np.ndarray:
    """Which lines end in ". . .", white space aside; bool per line."""
    _, data = docs.text_buffers()
    out = np.zeros(len(found.tail), np.bool_)
    dots = np.flatnonzero((found.tail == ord(".")) & (found.strip_end - found.strip_start >= 5))
    end = found.strip_end[dots]
    out[dots] = (data[end - 2] == 32) & (data[end - 3] == 46) & (data[end - 4] == 32) & (data[end - 5] == 46)
    return out


def unspaced_in_lines(docs: Documents, found: lines.Lines) -> np.ndarray:
    """How many characters of scripts without spaces each line has, int64 per line."""
    words = words_of(docs, "script")
    where = words.start[(words.flags & 4) != 0]  # IS_UNSPACED
    return np.searchsorted(where, found.end) - np.searchsorted(where, found.start)


def words_in_lines(docs: Documents, found: lines.Lines, splitter: Splitter) -> np.ndarray:
    """Where the words of each line start among those of the batch, int64 [lines + 1]."""
    words = words_of(docs, splitter)
    return np.append(np.searchsorted(words.start, found.start), len(words.start))


def tallies_of_lines(docs: Documents, found: lines.Lines) -> dict[str, np.ndarray]:
    """`tallies_of` for each line, its line feed included among the spaces."""

    def compute() -> dict[str, np.ndarray]:
        offsets, data = docs.text_buffers()
        table = characters.tally(np.append(found.start, offsets[-1]), data)
        return {name: table[:, k] for k, name in enumerate(characters.TALLIES)}

    return docs.once("tallies_of_lines", compute)


def with_lines(docs: Documents, found: lines.Lines, keep: np.ndarray) -> pa.Array:
    """The text column with only the lines in `keep` (bool per line)."""
    offsets, data = lines.keep_lines(found.first, found.start, found.end, docs.text_buffers()[1], keep)
    return text_array(offsets, data)


def readable(texts: pa.Array) -> pa.Array:
    """The same large_string column for code that makes Python strings: U+FFFD where the bytes are no UTF-8."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.large_binary()).to_pylist()
        return pa.array([None if x is None else x.decode("utf-8", "replace") for x in raw], pa.large_string())
    return texts


def text_array(offsets: np.ndarray, data: np.ndarray) -> pa.Array:
    """A large_string array from offsets (int64, the first is 0) and bytes."""
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
