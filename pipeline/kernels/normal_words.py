# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Words as RedPajama-V2 counts them, from Arrow string buffers: lower case, without ASCII punctuation, decomposed.

What a character becomes (its lower case in Unicode's form NFD) is frozen in `normal_words.npz`: a two-stage table of
numbers of expansions, 0 for characters that only change their case. Hangul syllables are decomposed by arithmetic.
"""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np

from pipeline.kernels.characters import ALPHA, DECIMAL, NUMERIC, SPACE, decode, flags_of, lower_of
from pipeline.kernels.words import HAS_ALPHA, HAS_CONTENT, HASH_BASE, Words

_FILE = Path(__file__).with_name("normal_words.npz")
if _FILE.exists():
    with np.load(_FILE) as _tables:
        PAGES, NUMBERS, FIRST, POINTS = (_tables[name] for name in ("pages", "numbers", "first", "points"))

_PUNCTUATION = np.zeros(128, np.bool_)
_PUNCTUATION[[point for point in range(33, 127) if not chr(point).isalnum()]] = True


@numba.njit(cache=True, nogil=True, inline="always")
def _expansion(point: int) -> int:
    return np.int64(NUMBERS[np.int64(PAGES[point >> 8]) << 8 | (point & 255)])


@numba.njit(cache=True, nogil=True)
def _append(value: int, point: int) -> tuple[int, int]:
    """(hash with the decomposed lower case of `point` behind it, how many characters these are)."""
    if 0xAC00 <= point < 0xD7A4:
        syllable = point - 0xAC00
        value = value * HASH_BASE + np.uint64(0x1100 + syllable // 588 + 1)
        value = value * HASH_BASE + np.uint64(0x1161 + syllable % 588 // 28 + 1)
        if syllable % 28 == 0:
            return value, 2
        return value * HASH_BASE + np.uint64(0x11A7 + syllable % 28 + 1), 3
    number = _expansion(point)
    if number == 0:
        return value * HASH_BASE + np.uint64(lower_of(point) + 1), 1
    low, high = FIRST[number], FIRST[number + 1]
    for k in range(low, high):
        value = value * HASH_BASE + np.uint64(POINTS[k] + 1)
    return value, high - low


@numba.njit(cache=True, nogil=True)
def _split(
    offsets: np.ndarray, data: np.ndarray, first: np.ndarray, start: np.ndarray, size: np.ndarray, chars: np.ndarray,
    hashes: np.ndarray, flags: np.ndarray,
) -> int:  # fmt: skip
    n = 0
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        begin, value, length, seen = np.int64(-1), np.uint64(0), 0, 0
        while at < end:
            point, step = decode(data, at, end)
            if point >= 128 or not _PUNCTUATION[point]:
                kind = flags_of(point)
                if kind & SPACE:
                    if begin >= 0:
                        start[n], size[n], chars[n], hashes[n], flags[n] = begin, at - begin, length, value, seen
                        n += 1
                        begin = np.int64(-1)
                else:
                    if begin < 0:
                        begin, value, length, seen = at, np.uint64(0), 0, HAS_CONTENT
                    value, more = _append(value, point)
                    length += more
                    if kind & ALPHA:
                        seen |= HAS_ALPHA
            at += step
        if begin >= 0:
            start[n], size[n], chars[n], hashes[n], flags[n] = begin, end - begin, length, value, seen
            n += 1
        first[d + 1] = n
    return n


def split_words(offsets: np.ndarray, data: np.ndarray) -> Words:
    """Words at white space after ASCII punctuation is taken out; their characters and hashes are of the form NFD.

    Marks are not reordered, and a final sigma is a sigma; `normal` is 0 everywhere. One pass over the bytes.
    Source: the normalisation of RedPajama-V2's quality signals (arXiv 2411.12372).
    """
    room = int(offsets[-1] - offsets[0]) // 2 + len(offsets) + 1
    first = np.zeros(len(offsets), np.int64)
    start, size, chars = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room, np.int32)
    hashes, flags = np.empty(room, np.uint64), np.empty(room, np.uint8)
    n = _split(offsets, data, first, start, size, chars, hashes, flags)
    return Words(first, start[:n], size[:n], chars[:n], hashes[:n], np.zeros(n, np.uint64), flags[:n])


@numba.njit(cache=True, nogil=True)
def raw_words(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """(words, those with a letter from a to z) of each document, int64 [documents, 2].

    Words are runs of letters, digits and underscores, and runs of anything else but white space.
    """
    out = np.zeros((len(offsets) - 1, 2), np.int64)
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        before, latin = 0, False  # before: 0 white space, 1 in a word, 2 in a run of signs
        while at < end:
            point, step = decode(data, at, end)
            flags = flags_of(point)
            now = 2
            if flags & SPACE:
                now = 0
            elif flags & (ALPHA | DECIMAL | NUMERIC) or point == 95:
                now = 1
            if now != before:
                out[d, 0] += now != 0
                latin = False
            if not latin and (65 <= point <= 90 or 97 <= point <= 122):
                latin = True
                out[d, 1] += 1
            before = now
            at += step
    return out


def build() -> None:
    """Write `normal_words.npz` from this Python's Unicode database (for scripts)."""
    import unicodedata

    expansions: dict[tuple[int, ...], int] = {}
    numbers = np.zeros(0x110000, np.uint16)
    for point in range(0x110000):
        if 0xD800 <= point < 0xE000 or 0xAC00 <= point < 0xD7A4:
            continue
        made = tuple(map(ord, unicodedata.normalize("NFD", chr(point).lower()).replace("ς", "σ")))
        if made != (int(lower_of.py_func(point)),):
            numbers[point] = expansions.setdefault(made, len(expansions) + 1)
    unique, inverse = np.unique(numbers.reshape(-1, 256), axis=0, return_inverse=True)
    points = [point for made in expansions for point in made]
    first = np.cumsum([0, 0, *map(len, expansions)])
    np.savez_compressed(
        _FILE, pages=inverse.ravel().astype(np.uint16), numbers=unique.ravel(), first=first.astype(np.int64),
        points=np.array(points, np.int64),
    )  # fmt: skip


if __name__ == "__main__":
    build()
