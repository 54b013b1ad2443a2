"""Normal forms of texts and lines over Arrow buffers, counts of equal lines, and their removal."""

from __future__ import annotations

import functools
import unicodedata

import numba
import numpy as np

from pipeline.kernels.hashing import mix64
from pipeline.kernels.minhash import SEPARATOR, SINGLE, decode, unit_tables

_U = np.uint64
_W = np.uint32
_B = np.uint8
_CODE_POINTS = 0x33480
_DROPPED = 0xFFFFFFFF
_EACH_01 = np.uint64(0x0101010101010101)
_EACH_80 = np.uint64(0x8080808080808080)

_CCNET_PUNCTUATION = "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►"
"""What CCNet (arXiv 1911.00359) takes out of a line before it compares, besides what cannot be printed."""


@numba.njit(cache=True, nogil=True)
def _normalised(offsets: np.ndarray, data: np.ndarray, kind: np.ndarray, lower: np.ndarray) -> tuple:  # type: ignore[type-arg]
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0], np.uint32)
    ends = np.zeros(rows + 1, np.int64)
    used = 0
    for row in range(rows):
        i = offsets[row]
        begin = used
        gap = False
        before = SEPARATOR
        while i < offsets[row + 1]:
            letter, width = decode(data, i, offsets[row + 1])
            i += width
            what = kind[letter] if letter < _W(_CODE_POINTS) else SEPARATOR
            if what == SEPARATOR:
                gap = True
                continue
            if gap and used > begin and what != SINGLE and before != SINGLE:
                out[used] = _W(32)
                used += 1
            out[used] = lower[letter]
            used += 1
            gap = False
            before = what
        ends[row + 1] = used
    return ends, out[:used]


def normalised_texts(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower-cased words of each string, one space between: (offsets int64 [n + 1], UTF-32 as uint8).

    Punctuation, symbols and repeated spaces go; where a script writes no spaces (Han, Thai, …) all spaces go.
    """
    ends, letters = _normalised(offsets, data, *unit_tables())
    return ends * 4, letters.view(np.uint8)


@functools.cache
def line_table(normalise: str) -> np.ndarray:
    """What each code point becomes before lines are compared (uint32): itself, another one, or _DROPPED.

    "ccnet": lower case, digits are 0, CCNet's punctuation and control characters go. "raw": nothing changes.
    """
    table = np.arange(_CODE_POINTS, dtype=np.uint32)
    if normalise == "raw":
        return table
    for point in range(_CODE_POINTS):
        if 0xD800 <= point < 0xE000:
            continue
        letter = chr(point)
        if unicodedata.category(letter) == "Nd":
            table[point] = 48
        elif letter.isalpha() or unicodedata.category(letter) in ("So", "Mn"):
            table[point] = ord(letter.lower()[0])
    for point in [*range(32), *range(127, 160), *map(ord, _CCNET_PUNCTUATION)]:
        table[point] = _DROPPED
    return table


@functools.cache
def line_spaces() -> np.ndarray:
    """True (bool) at the code points that Python's str.strip takes for white space."""
    return np.array([chr(point).isspace() for point in range(0x3001)])


@numba.njit(cache=True, nogil=True, inline="always")
def _is_space(letter: np.uint32, spaces: np.ndarray) -> np.bool_:
    return letter < _W(0x3001) and spaces[letter]


@numba.njit(cache=True, nogil=True)
def _stripped(data: np.ndarray, start: int, end: int, spaces: np.ndarray) -> tuple:  # type: ignore[type-arg]
    while start < end:
        letter, width = decode(data, start, end)
        if not _is_space(letter, spaces):
            break
        start += width
    while end > start:
        last = end - 1
        while last > start and (data[last] & _B(0xC0)) == _B(0x80):
            last -= 1
        letter, _ = decode(data, last, end)
        if not _is_space(letter, spaces):
            break
        end = last
    return start, end


@numba.njit(cache=True, nogil=True)
def _rewritten(data: np.ndarray, start: int, end: int, table: np.ndarray, scratch: np.ndarray) -> int:
    """The normal form of data[start:end] into scratch; its length. For lines that are not plain ASCII."""
    used = 0
    i = start
    while i < end:
        letter, width = decode(data, i, end)
        i += width
        if letter < _W(_CODE_POINTS):
            letter = table[letter]
        if letter < _W(0x80):
            scratch[used] = _B(letter)
            used += 1
        elif letter != _W(_DROPPED):  # no UTF-8 needed, only what nothing else becomes: a byte above 0x7f first
            scratch[used] = _B(0x80 | (letter >> _W(18)))
            scratch[used + 1] = _B((letter >> _W(12)) & _W(0x3F))
            scratch[used + 2] = _B((letter >> _W(6)) & _W(0x3F))
            scratch[used + 3] = _B(letter & _W(0x3F))
            used += 4
    return used


@numba.njit(cache=True, nogil=True)
def _key_of(words: np.ndarray, scratch: np.ndarray, used: int, salt: np.uint64) -> np.uint64:
    """64-bit hash of scratch[:used], which is `words` seen as bytes; never 0."""
    for j in range(used, (used + 7) // 8 * 8):
        scratch[j] = _B(0)
    h = salt ^ (_U(used) * _U(0xC6A4A7935BD1E995))
    for j in range((used + 7) // 8):
        k = words[j] * _U(0xC6A4A7935BD1E995)
        k ^= k >> _U(47)
        h = (h ^ (k * _U(0xC6A4A7935BD1E995))) * _U(0xC6A4A7935BD1E995)
    return max(mix64(h), _U(1))


@numba.njit(cache=True, nogil=True, inline="always")
def _eight(data: np.ndarray, i: int) -> np.uint64:
    """data[i : i + 8] as one little-endian number; the compiler makes one load of it."""
    i = _U(i)  # an unsigned index needs no check for a negative one
    low = _U(data[i]) | _U(data[i + _U(1)]) << _U(8) | _U(data[i + _U(2)]) << _U(16) | _U(data[i + _U(3)]) << _U(24)
    i += _U(4)
    high = _U(data[i]) | _U(data[i + _U(1)]) << _U(8) | _U(data[i + _U(2)]) << _U(16) | _U(data[i + _U(3)]) << _U(24)
    return low | high << _U(32)


@numba.njit(cache=True, nogil=True, inline="always")
def _odd(x: np.uint64) -> np.uint64:
    """Not 0 when one of eight bytes is not printable ASCII."""
    low = x & ~_EACH_80
    return (x | ~(low + _U(0x6060606060606060)) | (low + _EACH_01)) & _EACH_80


@numba.njit(cache=True, nogil=True, inline="always")
def _plain(x: np.uint64) -> np.uint64:
    """CCNet's normal form of eight bytes of ASCII: what `line_table` says of them, in arithmetic on all at once."""
    upper = (x + _U(0x3F3F3F3F3F3F3F3F)) & ~(x + _U(0x2525252525252525)) & _EACH_80
    digit = (x + _U(0x5050505050505050)) & ~(x + _U(0x4646464646464646)) & _EACH_80
    digit = (digit >> _U(7)) * _U(0x0F)
    return (x | upper >> _U(2)) & ~digit


@numba.njit(cache=True, nogil=True)
def _plain_key(data: np.ndarray, first: int, last: int, raw: bool, salt: np.uint64) -> np.uint64:
    """`_key_of` the line's normal form, without writing it anywhere; 0 when it is not all printable ASCII."""
    h = salt ^ (_U(last - first) * _U(0xC6A4A7935BD1E995))
    odd = _U(0)
    i = first
    while i + 8 <= last:
        x = _eight(data, i)
        if not raw:
            odd |= _odd(x)
            x = _plain(x)
        k = x * _U(0xC6A4A7935BD1E995)
        k ^= k >> _U(47)
        h = (h ^ (k * _U(0xC6A4A7935BD1E995))) * _U(0xC6A4A7935BD1E995)
        i += 8
    if i < last:
        x = _U(0)
        if i + 8 <= len(data):
            x = _eight(data, i) & ((_U(1) << _U(8 * (last - i))) - _U(1))
        else:
            for j in range(i, last):
                x |= _U(data[j]) << _U(8 * (j - i))
        if not raw:
            odd |= _odd(x | _U(0x2020202020202020) & ~((_U(1) << _U(8 * (last - i))) - _U(1)))
            x = _plain(x)
        k = x * _U(0xC6A4A7935BD1E995)
        k ^= k >> _U(47)
        h = (h ^ (k * _U(0xC6A4A7935BD1E995))) * _U(0xC6A4A7935BD1E995)
    return _U(0) if odd else max(mix64(h), _U(1))


@numba.njit(cache=True, nogil=True)
def _line_keys(
    offsets: np.ndarray,
    data: np.ndarray,
    raw: bool,
    table: np.ndarray,
    spaces: np.ndarray,
    salt: np.ndarray,
    shortest: int,
    breaks: np.ndarray,
) -> tuple:  # type: ignore[type-arg]
    """`breaks`: the index of every newline in data[offsets[0] : offsets[-1]], then one behind the end."""
    rows = len(offsets) - 1
    longest = 0
    for i in range(rows):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words = np.empty(longest // 4 + 2, np.uint64)  # a letter of 2 bytes becomes 4
    scratch = words.view(np.uint8)
    keys = np.empty(len(breaks) - 1 + rows, np.uint64)
    ends = np.zeros(rows + 1, np.int64)
    line = 0
    at = 0
    for row in range(rows):
        start = offsets[row]
        end = offsets[row + 1]
        while start <= end:
            stop = end
            if breaks[at] < end:
                stop = breaks[at]
                at += 1
            first, last = start, stop
            if stop > start and not (_B(32) < data[start] < _B(127) and _B(32) < data[stop - 1] < _B(127)):
                first, last = _stripped(data, start, stop, spaces)
            used = last - first
            key = _U(0)
            if used >= shortest:
                key = _plain_key(data, first, last, raw, salt[row])
                if key == _U(0):
                    used = _rewritten(data, first, last, table, scratch)
                    if used > 0:
                        key = _key_of(words, scratch, used, salt[row])
            keys[line] = key
            line += 1
            start = stop + 1
        ends[row + 1] = line
    return keys, ends


@numba.njit(cache=True, nogil=True)
def line_breaks(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The index of every newline between the first and the last offset, then one behind the end (int64)."""
    begin, end = offsets[0], offsets[-1]
    inside = data[begin:end]
    count = 0
    for j in range(len(inside)):
        count += inside[_U(j)] == _B(10)
    out = np.empty(count + 1, np.int64)
    used = 0
    words = data[: len(data) // 8 * 8].view(np.uint64)
    first, last = min(end, (begin + 7) // 8 * 8), end // 8 * 8
    for j in range(begin, first):
        if data[j] == _B(10):
            out[used] = j
            used += 1
    for w in range(first // 8, last // 8):  # eight bytes at once: a byte of x is 0 where there is a newline
        x = words[_U(w)] ^ _U(0x0A0A0A0A0A0A0A0A)
        if (x - _U(0x0101010101010101)) & ~x & _U(0x8080808080808080) != _U(0):
            for j in range(8 * w, 8 * w + 8):
                if data[j] == _B(10):
                    out[used] = j
                    used += 1
    for j in range(max(first, last), end):
        if data[j] == _B(10):
            out[used] = j
            used += 1
    out[count] = end + 1
    return out


def line_keys(
    offsets: np.ndarray, data: np.ndarray, *, normalise: str, salt: np.ndarray, min_bytes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit key for each line of each string: (keys uint64 [lines], offsets int64 [n + 1] into them).

    Lines are what lies between "\n"; equal keys mean equal normal forms under equal `salt` (uint64 [n]). A blank line,
    one without anything comparable, and one of less than `min_bytes` bytes has key 0. Two passes over the bytes.
    """
    tables = line_table(normalise), line_spaces()
    return _line_keys(offsets, data, normalise == "raw", *tables, salt, max(1, min_bytes), line_breaks(offsets, data))


@numba.njit(cache=True, nogil=True)
def combine(keys: np.ndarray, counts: np.ndarray, address: np.ndarray, line: np.ndarray) -> int:
    """Sum the counts of equal keys and keep the least (address, line), in place; `keys` sorted. How many are left."""
    used = 0
    for i in range(len(keys)):
        if used > 0 and keys[used - 1] == keys[i]:
            j = used - 1
            counts[j] += counts[i]
            if address[i] < address[j] or (address[i] == address[j] and line[i] < line[j]):
                address[j] = address[i]
                line[j] = line[i]
        else:
            keys[used] = keys[i]
            counts[used] = counts[i]
            address[used] = address[i]
            line[used] = line[i]
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def open_table(keys: np.ndarray, address: np.ndarray, line: np.ndarray, size: int) -> tuple:  # type: ignore[type-arg]
    """The rows as an open-addressing table of `size` slots (a power of 2, at least twice the rows); key 0 is empty."""
    slots = np.zeros(size, np.uint64)
    where = np.zeros(size, np.uint64)
    number = np.zeros(size, np.uint32)
    mask = _U(size - 1)
    for i in range(len(keys)):
        slot = keys[i] & mask
        while slots[slot] != _U(0):
            slot = (slot + _U(1)) & mask
        slots[slot] = keys[i]
        where[slot] = address[i]
        number[slot] = line[i]
    return slots, where, number


@numba.njit(cache=True, nogil=True)
def _without_lines(
    offsets: np.ndarray,
    data: np.ndarray,
    keys: np.ndarray,
    line_offsets: np.ndarray,
    slots: np.ndarray,
    where: np.ndarray,
    number: np.ndarray,
    address: np.ndarray,
    keep_first: bool,
    breaks: np.ndarray,
) -> tuple:  # type: ignore[type-arg]
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0], np.uint8)
    ends = np.zeros(rows + 1, np.int64)
    removed = np.zeros(rows, np.int64)
    left = np.zeros(rows, np.int64)
    mask = _U(len(slots) - 1)
    used = 0
    at = 0
    for row in range(rows):
        start = offsets[row]
        end = offsets[row + 1]
        run = np.int64(-1)  # where the lines begin that are to be copied together
        any_line = False
        for n in range(line_offsets[row + 1] - line_offsets[row]):
            stop = end
            if breaks[at] < end:
                stop = breaks[at]
                at += 1
            key = keys[line_offsets[row] + n]
            goes = False
            if key != _U(0):
                slot = key & mask
                while slots[slot] != _U(0) and slots[slot] != key:
                    slot = (slot + _U(1)) & mask
                goes = slots[slot] == key
                if goes and keep_first and where[slot] == address[row] and number[slot] == n:
                    goes = False
            if goes:
                removed[row] += 1
                if run >= 0:
                    length = start - 1 - run
                    out[used : used + length] = data[run : run + length]
                    used += length
                    run = np.int64(-1)
            else:
                left[row] += 1 if key != _U(0) else 0
                if run < 0:
                    if any_line:
                        out[used] = _B(10)
                        used += 1
                    run = start
                    any_line = True
            start = stop + 1
        if run >= 0:
            length = end - run
            out[used : used + length] = data[run:end]
            used += length
        ends[row + 1] = used
    return ends, out[:used], removed, left


def without_lines(
    offsets: np.ndarray,
    data: np.ndarray,
    keys: np.ndarray,
    line_offsets: np.ndarray,
    slots: np.ndarray,
    where: np.ndarray,
    number: np.ndarray,
    address: np.ndarray,
    keep_first: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The strings without the lines whose key is in the table: (offsets, bytes, lines removed [n], lines left [n]).

    With `keep_first` the occurrence at the table's (address, line) stays; `address` uint64 [n] are the rows'. Lines
    that stay beside each other are copied together. One pass over the keys, one over the bytes.
    """
    breaks = line_breaks(offsets, data)
    return _without_lines(offsets, data, keys, line_offsets, slots, where, number, address, keep_first, breaks)
