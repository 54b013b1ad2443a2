# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Words of a batch of documents, from Arrow string buffers, without a Python string."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from pipeline.kernels.characters import (
    ALPHA,
    DECIMAL,
    FINEWEB_PUNCTUATION,
    FLAGS,
    MARK,
    NUMERIC,
    SPACE,
    UNSPACED,
    UPPER,
    WIDE_PUNCTUATION,
    decode,
    flags_of,
    lower_of,
)

HASH_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)

HAS_ALPHA = 1  # a letter is in the word
HAS_CONTENT = 2  # a character that FineWeb does not call punctuation is in the word
IS_UNSPACED = 4  # one character of a script without spaces
HAS_ALNUM = 8  # a letter or a digit is in the word


# What an ASCII character adds to a word: its lower case + 1 if it is a letter or digit (bits 0 to 7), flags of the
# word (bits 8 to 15), white space (bit 16). One look-up instead of five tests.
_ASCII = np.zeros(128, np.int64)
for _point in range(128):
    _bits = int(FLAGS[_point])
    _alnum = bool(_bits & (ALPHA | NUMERIC | DECIMAL))
    _ASCII[_point] = (ord(chr(_point).lower()) + 1 if _alnum else 0) | bool(_bits & SPACE) << 16
    _ASCII[_point] |= (HAS_ALPHA * bool(_bits & ALPHA) | HAS_ALNUM * _alnum) << 8
    _ASCII[_point] |= (HAS_CONTENT * (not _bits & FINEWEB_PUNCTUATION)) << 8


@dataclass(frozen=True)
class Words:
    """The words of document d are [first[d], first[d + 1]) of the other arrays.

    first       int64 [documents + 1]
    start       int64: offset of the word's first byte
    size        int32: its length in bytes
    chars       int32: its length in characters
    hash        uint64: of its characters; hash(ab) = hash(a) * HASH_BASE ** len(b) + hash(b)
    normal      uint64: of its letters, marks and digits alone, in lower case; 0 where it has none, or without by_script
    flags       uint8: HAS_ALPHA | HAS_CONTENT | IS_UNSPACED | HAS_ALNUM
    """

    first: np.ndarray
    start: np.ndarray
    size: np.ndarray
    chars: np.ndarray
    hash: np.ndarray
    normal: np.ndarray
    flags: np.ndarray

    def counts(self) -> np.ndarray:
        """Words per document, int64."""
        return np.diff(self.first)


def split_words(offsets: np.ndarray, data: np.ndarray, *, by_script: bool) -> Words:
    """Split each document at white space, as str.split() does.

    `by_script` makes each character of a script without spaces between words (Chinese, Japanese, Thai …) a word of
    its own, and drops the wide punctuation around them; marks stay with the character before them.
    One pass over the bytes; about 6 bytes of result per byte of English text.
    """
    # A word and what separates it take two bytes at least, whatever the script.
    room = int(offsets[-1] - offsets[0]) // 2 + len(offsets) + 1
    first = np.zeros(len(offsets), np.int64)
    start, size, chars = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room, np.int32)
    hashes, normal, flags = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint8)
    n = _split(offsets, data, by_script, first, start, size, chars, hashes, normal, flags)
    return Words(first, start[:n], size[:n], chars[:n], hashes[:n], normal[:n], flags[:n])


@numba.njit(cache=True, nogil=True)
def _split(
    offsets: np.ndarray,
    data: np.ndarray,
    by_script: bool,
    first: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
    chars: np.ndarray,
    hashes: np.ndarray,
    normals: np.ndarray,
    word_flags: np.ndarray,
) -> int:
    n = 0
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        begin = np.int64(-1)  # of the open word
        after_unspaced = np.int64(-1)  # where the last unspaced word ended
        value, normal, seen, length = np.uint64(0), np.uint64(0), 0, 0
        while at < end:
            point, step = np.int64(data[at]), 1
            if point < 128:
                adds = _ASCII[point]
                if adds >> 16:
                    if begin >= 0:
                        start[n], size[n], chars[n] = begin, at - begin, length
                        hashes[n], normals[n], word_flags[n] = value, normal, seen
                        n += 1
                        begin = np.int64(-1)
                else:
                    if begin < 0:
                        begin = at
                        value, normal, seen, length = np.uint64(0), np.uint64(0), 0, 0
                    value = value * HASH_BASE + np.uint64(point + 1)
                    length += 1
                    seen |= adds >> 8
                    if by_script and adds & 255:
                        normal = normal * HASH_BASE + np.uint64(adds & 255)
                at += 1
                continue
            point, step = decode(data, at, end)
            flags = flags_of(point)
            closes = (flags & SPACE) != 0
            alone = False
            if by_script and not closes:
                alone = (flags & UNSPACED) != 0
                closes = alone or (flags & WIDE_PUNCTUATION) != 0
                if begin < 0 and (flags & MARK) != 0 and after_unspaced == at:
                    size[n - 1] += step
                    chars[n - 1] += 1
                    hashes[n - 1] = hashes[n - 1] * HASH_BASE + np.uint64(point + 1)
                    normals[n - 1] = normals[n - 1] * HASH_BASE + np.uint64(point + 1)
                    at += step
                    after_unspaced = at
                    continue
            if closes:
                if begin >= 0:
                    start[n], size[n], chars[n] = begin, at - begin, length
                    hashes[n], normals[n], word_flags[n] = value, normal, seen
                    n += 1
                    begin = np.int64(-1)
                if alone:
                    start[n], size[n], chars[n] = at, step, 1
                    hashes[n] = normals[n] = np.uint64(point + 1)
                    word_flags[n] = HAS_ALPHA * ((flags & ALPHA) != 0) | HAS_CONTENT | IS_UNSPACED | HAS_ALNUM
                    n += 1
                    after_unspaced = at + step
            else:
                if begin < 0:
                    begin = at
                    value, normal, seen, length = np.uint64(0), np.uint64(0), 0, 0
                value = value * HASH_BASE + np.uint64(point + 1)
                length += 1
                if flags & ALPHA:
                    seen |= HAS_ALPHA | HAS_ALNUM
                if flags & (NUMERIC | DECIMAL):
                    seen |= HAS_ALNUM
                if not flags & FINEWEB_PUNCTUATION:
                    seen |= HAS_CONTENT
                if by_script and flags & (ALPHA | NUMERIC | DECIMAL | MARK):
                    small = lower_of(point) if flags & UPPER else point
                    normal = normal * HASH_BASE + np.uint64(small + 1)
            at += step
        if begin >= 0:
            start[n], size[n], chars[n] = begin, end - begin, length
            hashes[n], normals[n], word_flags[n] = value, normal, seen
            n += 1
        first[d + 1] = n
    return n


def hash_word(word: str) -> int:
    """`Words.hash` of one word, in Python."""
    value = 0
    for char in word:
        value = (value * int(HASH_BASE) + ord(char) + 1) & 0xFFFFFFFFFFFFFFFF
    return value


def hash_words(words: tuple[str, ...]) -> np.ndarray:
    """`Words.hash` of each word, sorted uint64: what `count_distinct` looks up."""
    return np.sort(np.array([hash_word(word) for word in set(words)], np.uint64))


@numba.njit(cache=True, nogil=True)
def count_distinct(first: np.ndarray, hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many of the `wanted` hashes (sorted) occur in each document, int64 [documents]."""
    out = np.zeros(len(first) - 1, np.int64)
    bits = np.zeros(256, np.bool_)  # of the low byte: most words are told apart without a search
    for value in wanted:
        bits[value & np.uint64(255)] = True
    seen = np.full(len(wanted), -1, np.int64)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1]):
            value = hashes[i]
            if bits[value & np.uint64(255)]:
                k = np.searchsorted(wanted, value)
                if k < len(wanted) and wanted[k] == value and seen[k] != d:
                    seen[k] = d
                    out[d] += 1
    return out


@numba.njit(cache=True, nogil=True)
def count_members(first: np.ndarray, hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many words of each document are among the `wanted` hashes (sorted), int64 [documents]."""
    out = np.zeros(len(first) - 1, np.int64)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1]):
            k = np.searchsorted(wanted, hashes[i])
            out[d] += k < len(wanted) and wanted[k] == hashes[i]
    return out


@numba.njit(cache=True, nogil=True)
def count_lower_members(
    first: np.ndarray, start: np.ndarray, size: np.ndarray, chars: np.ndarray, data: np.ndarray, wanted: np.ndarray,
    longest: int,
) -> np.ndarray:  # fmt: skip
    """How many words of each document, in lower case, are among the `wanted` hashes (sorted), int64 [documents].

    `longest` is the length of the longest wanted word, in characters: longer words are not looked at.
    """
    out = np.zeros(len(first) - 1, np.int64)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1]):
            if chars[i] > longest:
                continue
            value, at, end = np.uint64(0), start[i], start[i] + size[i]
            while at < end:
                point, step = decode(data, at, end)
                value = value * HASH_BASE + np.uint64(lower_of(point) + 1)
                at += step
            k = np.searchsorted(wanted, value)
            out[d] += k < len(wanted) and wanted[k] == value
    return out


@numba.njit(cache=True, nogil=True)
def count_ascii_separated(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Words of each document that start with a letter or digit, int64 [documents]; ASCII white space and NUL separate.

    These are the words of fastText's tokenizer.
    """
    out = np.zeros(len(offsets) - 1, np.int64)
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        inside = False
        while at < end:
            byte = data[at]
            if byte == 0 or byte == 32 or 9 <= byte <= 13:
                inside = False
            elif not inside:
                inside = True
                out[d] += (flags_of(decode(data, at, end)[0]) & (ALPHA | DECIMAL | NUMERIC)) != 0
            at += 1
    return out


@numba.njit(cache=True, nogil=True)
def word_sums(first: np.ndarray, chars: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Per document, int64 [documents, 7]: words with a letter, content words, their characters, unspaced words,
    spaced words, characters of spaced words, characters of all words."""
    out = np.zeros((len(first) - 1, 7), np.int64)
    for d in range(len(first) - 1):
        alpha = content = content_chars = unspaced = spaced_chars = total = 0
        for i in range(first[d], first[d + 1]):
            flag, length = flags[i], chars[i]
            alpha += (flag & HAS_ALPHA) != 0
            if flag & HAS_CONTENT:
                content += 1
                content_chars += length
            if flag & IS_UNSPACED:
                unspaced += 1
            else:
                spaced_chars += length
            total += length
        row = out[d]
        row[0], row[1], row[2], row[3] = alpha, content, content_chars, unspaced
        row[4], row[5], row[6] = first[d + 1] - first[d] - unspaced, spaced_chars, total
    return out


@numba.njit(cache=True, nogil=True)
def median_chars(first: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """Median word length of each document, float64; NaN without words."""
    out = np.full(len(first) - 1, np.nan)
    for d in range(len(first) - 1):
        if first[d + 1] > first[d]:
            out[d] = np.median(chars[first[d] : first[d + 1]])
    return out


@numba.njit(cache=True, nogil=True)
def count_containing(first: np.ndarray, start: np.ndarray, size: np.ndarray, data: np.ndarray) -> np.ndarray:
    """How many words of each document contain "#" or "…", int64 [documents]."""
    out = np.zeros(len(first) - 1, np.int64)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1]):
            end = start[i] + size[i]
            for at in range(start[i], end):
                byte = data[at]
                if byte == 35 or (byte == 0xE2 and at + 2 < end and data[at + 1] == 0x80 and data[at + 2] == 0xA6):
                    out[d] += 1
                    break
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def power(chars: int) -> int:
    """HASH_BASE ** chars, modulo 2 ** 64."""
    result, base = np.uint64(1), HASH_BASE
    while chars > 0:
        if chars & 1:
            result *= base
        base *= base
        chars >>= 1
    return result
