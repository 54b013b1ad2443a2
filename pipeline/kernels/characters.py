# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""What each Unicode character is (letter, digit, space, Han …), as bits in a table that kernels can read.

The table is frozen in `characters.npz`, so that another Python, with another Unicode version, does not change a
single decision. It is two-stage: `PAGES[cp >> 8]` names one of some 200 different pages of 256 flags.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

SPACE = 1 << 0  # str.isspace()
ALPHA = 1 << 1  # str.isalpha()
DECIMAL = 1 << 2  # str.isdecimal()
NUMERIC = 1 << 3  # str.isnumeric(), decimals included
UPPER = 1 << 4  # str.isupper()
LOWER = 1 << 5  # str.islower()
PUNCTUATION = 1 << 6  # category P
SYMBOL = 1 << 7  # category S
MARK = 1 << 8  # category M
OTHER = 1 << 9  # category C: control, format, private use, surrogate, unassigned
LINE_BREAK = 1 << 10  # where str.splitlines() splits
TERMINAL = 1 << 11  # ends a sentence: Unicode's Sentence_Terminal as of FineWeb (Unicode 15), with Khmer signs
UNSPACED = 1 << 12  # letters of scripts that are written without spaces between words
HAN = 1 << 13  # script Han
FINEWEB_PUNCTUATION = 1 << 14  # what datatrove counts as punctuation in "symbol-only words"
WIDE_PUNCTUATION = 1 << 15  # punctuation of Chinese and Japanese text (U+3000 to U+303F and full-width forms)

UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
REPLACEMENT = 0xFFFD

_FILE = Path(__file__).with_name("characters.npz")


def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with np.load(_FILE) as tables:
        return tables["pages"], tables["flags"], tables["lower_pages"], tables["lower"]


if _FILE.exists():
    PAGES, FLAGS, LOWER_PAGES, LOWER_CASE = _load()


@numba.njit(cache=True, nogil=True, inline="always")
def decode(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """(code point, bytes taken) of the character at `at`; what is not UTF-8 is U+FFFD, one byte at a time.

    Never reads at or behind `end`. Lone surrogates (ED A0..BF xx) count as damage, as Python's decoder has it.
    """
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    if first < 0xC2 or first > 0xF4:
        return REPLACEMENT, 1
    if first < 0xE0:
        if at + 1 < end and (data[at + 1] & 0xC0) == 0x80:
            return (first & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), 2
        return REPLACEMENT, 1
    if first < 0xF0:
        if at + 2 < end and (data[at + 1] & 0xC0) == 0x80 and (data[at + 2] & 0xC0) == 0x80:
            point = (first & 0x0F) << 12 | (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F)
            if point >= 0x800 and (point < 0xD800 or point > 0xDFFF):
                return point, 3
        return REPLACEMENT, 1
    if at + 3 < end and (data[at + 1] & 0xC0) == 0x80 and (data[at + 2] & 0xC0) == 0x80:
        if (data[at + 3] & 0xC0) != 0x80:
            return REPLACEMENT, 1
        point = (first & 0x07) << 18 | (np.int64(data[at + 1]) & 0x3F) << 12
        point |= (np.int64(data[at + 2]) & 0x3F) << 6 | (np.int64(data[at + 3]) & 0x3F)
        if 0x10000 <= point <= 0x10FFFF:
            return point, 4
    return REPLACEMENT, 1


@numba.njit(cache=True, nogil=True, inline="always")
def flags_of(point: int) -> int:
    """The flag bits of a code point."""
    return np.int64(FLAGS[np.int64(PAGES[point >> 8]) << 8 | (point & 255)])


@numba.njit(cache=True, nogil=True, inline="always")
def lower_of(point: int) -> int:
    """Simple lower case of a code point (one to one)."""
    return point + np.int64(LOWER_CASE[np.int64(LOWER_PAGES[point >> 8]) << 8 | (point & 255)])


def flags_at(points: np.ndarray) -> np.ndarray:
    """Flag bits of an array of code points; 0 for negative ones (no character)."""
    safe = np.maximum(points, 0)
    return np.where(points < 0, 0, FLAGS[PAGES[safe >> 8].astype(np.int64) << 8 | (safe & 255)])


TALLIES = (
    "chars", "alpha", "decimal", "numeric", "upper", "space", "punctuation", "symbol", "other", "han", "unspaced",
    "wide_punctuation", "replacement", "newlines", "hashes", "ellipses", "curly",
)  # fmt: skip
"""What `tally` counts. `ellipses` are "..." (without overlap) and "…"; `alnum` is alpha + numeric."""

_BITS = np.array(
    [0, ALPHA, DECIMAL, NUMERIC, UPPER, SPACE, PUNCTUATION, SYMBOL, OTHER, HAN, UNSPACED, WIDE_PUNCTUATION], np.int64
)


@numba.njit(cache=True, nogil=True)
def tally(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Counts of characters per document, int64 [documents, len(TALLIES)]. One pass over the bytes."""
    documents = len(offsets) - 1
    out = np.zeros((documents, 17), np.int64)
    ascii_counts = np.zeros(128, np.int64)
    for d in range(documents):
        ascii_counts[:] = 0
        row = out[d]
        at, end = offsets[d], offsets[d + 1]
        dots = 0
        while at < end:
            byte = data[at]
            if byte < 128:
                ascii_counts[byte] += 1
                at += 1
                if byte == 46:
                    dots += 1
                elif dots:
                    row[15] += dots // 3
                    dots = 0
                continue
            row[15] += dots // 3
            dots = 0
            point, size = decode(data, at, end)
            at += size
            flags = flags_of(point)
            row[0] += 1
            for k in range(1, 12):
                row[k] += (flags & _BITS[k]) != 0
            row[12] += point == REPLACEMENT
            row[15] += point == 0x2026
        row[15] += dots // 3
        for byte in range(128):
            count = ascii_counts[byte]
            if count:
                flags = flags_of(byte)
                row[0] += count
                for k in range(1, 12):
                    if flags & _BITS[k]:
                        row[k] += count
        row[13] = ascii_counts[10]
        row[14] = ascii_counts[35]
        row[16] = ascii_counts[123]
    return out


@numba.njit(cache=True, nogil=True)
def count_marks(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """("#", ellipses as `tally` counts them) of each document, int64 [documents, 2].

    One pass over the bytes that the compiler can run on many bytes at once; another where three full stops follow
    each other.
    """
    out = np.zeros((len(offsets) - 1, 2), np.int64)
    for d in range(len(offsets) - 1):
        part = data[offsets[d] : offsets[d + 1]]
        hashes, ellipses, dots = np.uint32(0), np.uint32(0), np.uint32(0)
        for i in range(min(2, len(part))):
            hashes += np.uint32(part[i] == 35)
        for i in range(len(part) - 2):
            a, b, c = part[i], part[i + 1], part[i + 2]
            hashes += np.uint32(c == 35)
            ellipses += np.uint32((c == 0xA6) & (b == 0x80) & (a == 0xE2))
            dots += np.uint32((c == 46) & (b == 46) & (a == 46))
        out[d, 0], out[d, 1] = hashes, np.int64(ellipses) + (_dots(part) if dots else 0)
    return out


@numba.njit(cache=True, nogil=True)
def _dots(part: np.ndarray) -> int:
    """How many "..." are in the bytes, without overlap."""
    count, run = 0, 0
    for byte in part:
        if byte == 46:
            run += 1
            if run == 3:
                count, run = count + 1, 0
        else:
            run = 0
    return count


@numba.njit(cache=True, nogil=True)
def count_spaced_dots(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """How many ". . ." each document has, without overlap, int64 [documents]."""
    out = np.zeros(len(offsets) - 1, np.int64)
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        while at + 5 <= end:
            if (
                data[at] == 46
                and data[at + 1] == 32
                and data[at + 2] == 46
                and data[at + 3] == 32
                and data[at + 4] == 46
            ):
                out[d] += 1
                at += 5
            else:
                at += 1
    return out


def build() -> None:
    """Write `characters.npz` from this Python's Unicode database and the `regex` module (for scripts)."""
    import unicodedata

    import regex

    newer = r"\u1b4e\u1b4f\u1b7f\u2024\u2cf9-\u2cfb\u2e60\u2e61\ufe12\ufe15\ufe16"
    newer += r"\U000113d4\U000113d5\U00016d6e\U00016d6f"
    terminal = regex.compile(rf"(?![{newer}])[\p{{Sentence_Terminal}}\u17d6\u17d9\u17da]")
    unspaced = regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in UNSPACED_SCRIPTS) + "]")
    han = regex.compile(r"\p{Script=Han}")
    fineweb = set("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»")
    fineweb |= {chr(x) for low, high in ((0, 9), (11, 32), (127, 160)) for x in range(low, high)}
    tests: list[tuple[int, Callable[[str, str], bool]]] = [
        (SPACE, lambda c, kind: c.isspace()),
        (ALPHA, lambda c, kind: c.isalpha()),
        (DECIMAL, lambda c, kind: c.isdecimal()),
        (NUMERIC, lambda c, kind: c.isnumeric() or c.isdigit()),
        (UPPER, lambda c, kind: c.isupper()),
        (LOWER, lambda c, kind: c.islower()),
        (PUNCTUATION, lambda c, kind: kind[0] == "P"),
        (SYMBOL, lambda c, kind: kind[0] == "S"),
        (MARK, lambda c, kind: kind[0] == "M"),
        (OTHER, lambda c, kind: kind[0] == "C" and c not in "\t\n\r"),
        (LINE_BREAK, lambda c, kind: len(f"a{c}b".splitlines()) == 2),
        (TERMINAL, lambda c, kind: bool(terminal.match(c))),
        (UNSPACED, lambda c, kind: kind[0] in "LN" and bool(unspaced.match(c))),
        (HAN, lambda c, kind: bool(han.match(c))),
        (FINEWEB_PUNCTUATION, lambda c, kind: c in fineweb or bool(terminal.match(c))),
        (WIDE_PUNCTUATION, lambda c, kind: kind[0] == "P" and (0x3000 <= ord(c) < 0x3040 or 0xFF00 <= ord(c) < 0xFFF0)),
    ]
    flags = np.zeros(0x110000, np.uint16)
    lower = np.zeros(0x110000, np.int32)
    for point in range(0x110000):
        char = chr(point)
        kind = unicodedata.category(char)
        flags[point] = sum(bit for bit, test in tests if test(char, kind))
        small = char.lower()
        if len(small) == 1:
            lower[point] = ord(small) - point
    pages, tables = [], []
    for table in (flags, lower):
        unique, inverse = np.unique(table.reshape(-1, 256), axis=0, return_inverse=True)
        order = np.argsort(np.argmax(inverse.ravel()[:, None] == np.arange(len(unique)), axis=0))  # by first use
        pages.append(np.argsort(order)[inverse.ravel()].astype(np.uint16))
        tables.append(unique[order].ravel())
    np.savez_compressed(_FILE, pages=pages[0], flags=tables[0], lower_pages=pages[1], lower=tables[1])
    print(f"{_FILE.name}: Unicode {unicodedata.unidata_version}, {len(tables[0]) // 256} pages", file=sys.stderr)


if __name__ == "__main__":
    build()
