# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Words as Unicode's annex 29 breaks text, from Arrow string buffers: what DCLM counts n-grams of.

The property table is frozen in `word_breaks.npz`, two-stage as that of `characters`.
"""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np

from pipeline.kernels.characters import ALPHA, DECIMAL, NUMERIC, decode, flags_of
from pipeline.kernels.words import HAS_ALPHA, HAS_CONTENT, HASH_BASE, Words

CLASSES = (
    "Other", "CR", "LF", "Newline", "Extend", "ZWJ", "Format", "Regional_Indicator", "Katakana", "Hebrew_Letter",
    "ALetter", "Single_Quote", "Double_Quote", "MidNumLet", "MidLetter", "MidNum", "Numeric", "ExtendNumLet",
    "WSegSpace",
)  # fmt: skip
(_OTHER, _CR, _LF, _NEWLINE, _EXTEND, _ZWJ, _FORMAT, _REGION, _KATAKANA, _HEBREW, _LETTER, _SINGLE, _DOUBLE, _MID_BOTH,
 _MID_LETTER, _MID_NUMBER, _NUMERIC, _JOINER, _BLANK) = range(len(CLASSES))  # fmt: skip
_PICTOGRAPH = 32  # Extended_Pictographic, beside the class

_FILE = Path(__file__).with_name("word_breaks.npz")
if _FILE.exists():
    with np.load(_FILE) as _tables:
        PAGES, TABLE = _tables["pages"], _tables["classes"]


@numba.njit(cache=True, nogil=True, inline="always")
def _class(point: int) -> int:
    return np.int64(TABLE[np.int64(PAGES[point >> 8]) << 8 | (point & 255)])


@numba.njit(cache=True, nogil=True, inline="always")
def _is_letter(kind: int) -> bool:
    return kind == _LETTER or kind == _HEBREW


@numba.njit(cache=True, nogil=True)
def _following(data: np.ndarray, at: int, end: int) -> int:
    """Class of the next character that is not ignored, from `at` on; Other at the end."""
    while at < end:
        point, step = decode(data, at, end)
        kind = _class(point) & 31
        if kind != _EXTEND and kind != _ZWJ and kind != _FORMAT:
            return kind
        at += step
    return np.int64(_OTHER)


@numba.njit(cache=True, nogil=True)
def _joins(before: int, left: int, kind: int, data: np.ndarray, behind: int, end: int, regions: int) -> bool:
    """Rules WB5 to WB16 between `left` (which `before` is joined to) and a character of class `kind`."""
    if _is_letter(left):
        if _is_letter(kind) or kind == _NUMERIC or kind == _JOINER or (left == _HEBREW and kind == _SINGLE):
            return True
        if kind == _MID_LETTER or kind == _MID_BOTH or kind == _SINGLE:
            return _is_letter(_following(data, behind, end))
        return left == _HEBREW and kind == _DOUBLE and _following(data, behind, end) == _HEBREW
    if left == _NUMERIC:
        if kind == _NUMERIC or _is_letter(kind) or kind == _JOINER:
            return True
        if kind == _MID_NUMBER or kind == _MID_BOTH or kind == _SINGLE:
            return _following(data, behind, end) == _NUMERIC
        return False
    if _is_letter(kind):
        if _is_letter(before) and (left == _MID_LETTER or left == _MID_BOTH or left == _SINGLE):
            return True
        return left == _JOINER or (kind == _HEBREW and before == _HEBREW and left == _DOUBLE)
    if kind == _NUMERIC:
        middle = left == _MID_NUMBER or left == _MID_BOTH or left == _SINGLE
        return left == _JOINER or (before == _NUMERIC and middle)
    if left == _KATAKANA or left == _JOINER:
        return kind == _KATAKANA or kind == _JOINER
    return left == _REGION and kind == _REGION and regions % 2 == 1


@numba.njit(cache=True, nogil=True)
def _split(
    offsets: np.ndarray, data: np.ndarray, first: np.ndarray, start: np.ndarray, size: np.ndarray, chars: np.ndarray,
    hashes: np.ndarray, flags: np.ndarray,
) -> int:  # fmt: skip
    n = 0
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        begin = at
        before, left, last, regions = np.int64(_OTHER), np.int64(-1), np.int64(-1), 0
        value, length, seen, counts = np.uint64(0), 0, 0, False
        while at < end:
            point, step = decode(data, at, end)
            full = _class(point)
            kind = full & 31
            hard = kind == _CR or kind == _LF or kind == _NEWLINE
            ignored = kind == _EXTEND or kind == _ZWJ or kind == _FORMAT
            if left < 0:
                joined = False
            elif last == _CR or last == _LF or last == _NEWLINE or hard:
                joined = last == _CR and kind == _LF
            elif (last == _ZWJ and full & _PICTOGRAPH) or (last == _BLANK and kind == _BLANK) or ignored:
                joined = True
            else:
                joined = _joins(before, left, kind, data, at + step, end, regions)
            if not joined:
                if counts:
                    start[n], size[n], chars[n], hashes[n], flags[n] = begin, at - begin, length, value, seen
                    n += 1
                begin = at
                value, length, seen = np.uint64(0), 0, HAS_CONTENT
                counts = (flags_of(point) & (ALPHA | DECIMAL | NUMERIC)) != 0
                left = np.int64(_OTHER)
                regions = 0
            value = value * HASH_BASE + np.uint64(point + 1)
            length += 1
            if flags_of(point) & ALPHA:
                seen |= HAS_ALPHA
            if not ignored or begin == at:
                before, left = left, kind
                regions += kind == _REGION
            last = kind
            at += step
        if counts:
            start[n], size[n], chars[n], hashes[n], flags[n] = begin, end - begin, length, value, seen
            n += 1
        first[d + 1] = n
    return n


def split_words(offsets: np.ndarray, data: np.ndarray) -> Words:
    """The parts between Unicode's default word boundaries that start with a letter or digit.

    `normal` is 0 everywhere. One pass over the bytes. Source: Unicode Standard Annex 29, section 4.
    """
    room = int(offsets[-1] - offsets[0]) + 1
    first = np.zeros(len(offsets), np.int64)
    start, size, chars = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room, np.int32)
    hashes, flags = np.empty(room, np.uint64), np.empty(room, np.uint8)
    n = _split(offsets, data, first, start, size, chars, hashes, flags)
    return Words(first, start[:n], size[:n], chars[:n], hashes[:n], np.zeros(n, np.uint64), flags[:n])


def build() -> None:
    """Write `word_breaks.npz` from the Unicode database of the `regex` module (for scripts)."""
    import regex

    table = np.zeros(0x110000, np.uint8)
    everything = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    for number, name in enumerate(CLASSES[1:], 1):
        for char in regex.findall(rf"\p{{Word_Break={name}}}", everything):
            table[ord(char)] = number
    for char in regex.findall(r"\p{Extended_Pictographic}", everything):
        table[ord(char)] |= _PICTOGRAPH
    unique, inverse = np.unique(table.reshape(-1, 256), axis=0, return_inverse=True)
    np.savez_compressed(_FILE, pages=inverse.ravel().astype(np.uint16), classes=unique.ravel())


if __name__ == "__main__":
    build()
