# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""C4's line rules in one pass: keeps the good lines of each document, counts the others by rule."""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.characters import DECIMAL, SPACE, TERMINAL, decode, flags_of
from pipeline.kernels.sentences import count_sentences

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_NEEDLES = [text.encode() for text in ("lorem ipsum", "javascript", *POLICY)]
NEEDLES = np.zeros((len(_NEEDLES), 16), np.uint8)
for _k, _text in enumerate(_NEEDLES):
    NEEDLES[_k, : len(_text)] = np.frombuffer(_text, np.uint8)
NEEDLE_SIZES = np.array([len(text) for text in _NEEDLES], np.int64)
STARTS = np.zeros((256, 256), np.bool_)  # two bytes with which a needle can start
for _text in _NEEDLES:
    for _first in (_text[0], _text[0] - 32):
        STARTS[_first, _text[1]] = STARTS[_first, _text[1] - 32] = True
CITATIONS = np.zeros((2, 17), np.uint8)
CITATIONS[0, :6] = np.frombuffer(b"[edit]", np.uint8)
CITATIONS[1] = np.frombuffer(b"[citation needed]", np.uint8)

LONG_WORD, NO_TERMINAL, FEW_WORDS, JAVASCRIPT, POLICY_LINE, KEPT, LOREM, CURLY, SENTENCES = range(9)
"""Columns of the counts: dropped lines by rule, kept lines, whether the page goes for a phrase, sentences kept."""


@numba.njit(cache=True, nogil=True, inline="always")
def _citation(data: np.ndarray, at: int, end: int) -> int:
    """Bytes of a citation mark ("[12]", "[]", "[edit]", "[citation needed]") that starts at `at`, or 0."""
    k = at + 1
    while k < end:
        if data[k] == 93:
            return k + 1 - at
        point, step = np.int64(data[k]), 1
        if point >= 128:
            point, step = decode(data, k, end)
        if not flags_of(point) & DECIMAL:
            break
        k += step
    for which in range(2):
        size = 6 if which == 0 else 17
        if at + size <= end:
            same = True
            for i in range(size):
                if data[at + i] != CITATIONS[which, i]:
                    same = False
                    break
            if same:
                return size
    return 0


@numba.njit(cache=True, nogil=True)
def _find_needles(data: np.ndarray, start: int, end: int) -> tuple[bool, bool, bool, bool, bool]:
    """Whether "lorem ipsum", "javascript" (in any case), a policy phrase, "{" and "[" are in the bytes."""
    lorem = javascript = policy = curly = square = False
    following = np.uint8(0)
    for at in range(end - 1, start - 1, -1):
        byte = data[at]
        possible = STARTS[byte, following]
        following = byte
        if byte == 123:
            curly = True
        elif byte == 91:
            square = True
        if not possible:
            continue
        for which in range(len(NEEDLE_SIZES)):
            size = NEEDLE_SIZES[which]
            if at + size > end:
                continue
            same = True
            for i in range(size):
                small = data[at + i]
                if 65 <= small <= 90:
                    small += 32
                if small != NEEDLES[which, i]:
                    same = False
                    break
            if same:
                if which == 0:
                    lorem = True
                elif which == 1:
                    javascript = True
                else:
                    policy = True
    return lorem, javascript, policy, curly, square


@numba.njit(cache=True, nogil=True)
def page_flags(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Whether "lorem ipsum", "javascript" and "{" are anywhere in each document, int64 [documents, 3]."""
    out = np.zeros((len(offsets) - 1, 3), np.int64)
    for d in range(len(offsets) - 1):
        out[d, 0], out[d, 1], _, out[d, 2], _ = _find_needles(data, offsets[d], offsets[d + 1])
    return out


@numba.njit(cache=True, nogil=True)
def _without_citations(data: np.ndarray, start: int, end: int, out: np.ndarray, to: int) -> int:
    """Copy a line without its citation marks to out[to:]; the end of the copy."""
    at = start
    while at < end:
        if data[at] == 91:
            size = _citation(data, at, end)
            if size:
                at += size
                continue
        out[to] = data[at]
        to += 1
        at += 1
    return to


@numba.njit(cache=True, nogil=True)
def _last(data: np.ndarray, start: int, end: int) -> int:
    """Code point of the last character of data[start:end], or -1."""
    if end <= start:
        return np.int64(-1)
    at = end - 1
    while at > start and end - at < 4 and (data[at] & 0xC0) == 0x80:
        at -= 1
    return decode(data, at, end)[0]


@numba.njit(cache=True, nogil=True, inline="always")
def _is_end(last: int, data: np.ndarray, start: int, end: int, single_quote: bool, wide_marks: bool) -> bool:
    """Whether a line that ends in the character `last` ends like a sentence."""
    if last >= 128:
        return wide_marks and ((flags_of(last) & TERMINAL) != 0 or last == 0x201D or last == 0x300D)
    if last == 46:
        return not (end - start >= 3 and data[end - 2] == 46 and data[end - 3] == 46)
    return last == 63 or last == 33 or last == 34 or (single_quote and last == 39)


@numba.njit(cache=True, nogil=True)
def clean_lines(
    first: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    tails: np.ndarray,
    words: np.ndarray,
    longest: np.ndarray,
    data: np.ndarray,
    max_word_length: int,
    min_words: int,
    terminal: bool,
    single_quote: bool,
    wide_marks: bool,
    citations: bool,
    lorem_rule: bool,
    javascript_rule: bool,
    curly_rule: bool,
    policy_rule: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts int64 [documents, 9], offsets int64 [documents + 1], bytes) of the kept lines, joined by line feeds.

    Lines come stripped, with their last character, number of words and longest word. A page with a forbidden
    phrase or bracket in a line that would stay ends there. With `wide_marks`, terminal marks of all scripts end a
    line. Dropped lines cost nothing but this look; kept ones are read twice and copied.
    """
    documents = len(first) - 1
    counts = np.zeros((documents, 9), np.int64)
    offsets = np.zeros(documents + 1, np.int64)
    room = np.int64(0)
    for i in range(first[0], first[-1]):
        room += ends[i] - starts[i] + 1
    out = np.empty(room + 1, np.uint8)
    cursor = np.int64(0)
    for d in range(documents):
        row = counts[d]
        begin = cursor
        for i in range(first[d], first[d + 1]):
            start, end = starts[i], ends[i]
            if longest[i] > max_word_length:
                row[LONG_WORD] += 1
                continue
            # A citation mark at the end hides the last character; inside, it changes nothing about the end.
            hidden = citations and tails[i] == 93
            if terminal and not hidden and not _is_end(tails[i], data, start, end, single_quote, wide_marks):
                row[NO_TERMINAL] += 1
                continue
            if words[i] < min_words and not hidden:
                row[FEW_WORDS] += 1
                continue
            line_start = cursor if row[KEPT] == 0 else cursor + 1  # room for the line feed
            lorem, javascript, policy, curly, square = _find_needles(data, start, end)
            if square and citations:
                to = _without_citations(data, start, end, out, line_start)
                if hidden:
                    if terminal and not _is_end(
                        _last(out, line_start, to), out, line_start, to, single_quote, wide_marks
                    ):
                        row[NO_TERMINAL] += 1
                        continue
                    if words[i] < min_words:
                        row[FEW_WORDS] += 1
                        continue
                lorem, javascript, policy, curly, square = _find_needles(out, line_start, to)
            else:
                to = line_start + end - start
            if lorem and lorem_rule:
                row[LOREM] = 1
                break
            if javascript and javascript_rule:
                row[JAVASCRIPT] += 1
                continue
            if curly and curly_rule:
                row[CURLY] = 1
                break
            if policy and policy_rule:
                row[POLICY_LINE] += 1
                continue
            if not (square and citations) and to - line_start == end - start:
                out[line_start:to] = data[start:end]
            row[SENTENCES] += count_sentences(out, line_start, to)
            row[KEPT] += 1
            if line_start > cursor:
                out[cursor] = 10
            cursor = to
        cursor = _strip(out, begin, cursor)
        offsets[d + 1] = cursor
    return counts, offsets, out[:cursor]


@numba.njit(cache=True, nogil=True)
def _strip(out: np.ndarray, begin: int, end: int) -> int:
    """Take white space off both ends of out[begin:end], in place; the new end."""
    at = begin
    while at < end:
        point, step = decode(out, at, end)
        if not flags_of(point) & SPACE:
            break
        at += step
    while end > at:
        k = end - 1
        while k > at and (out[k] & 0xC0) == 0x80:
            k -= 1
        point, step = decode(out, k, end)
        if not flags_of(point) & SPACE:
            break
        end = k
    if at > begin:
        for k in range(end - at):
            out[begin + k] = out[at + k]
    return begin + end - at
