# mypy: disable-error-code="assignment,arg-type,return-value,call-arg,var-annotated"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Normal forms of texts and of lines over Arrow buffers, and 64-bit keys of lines."""

from __future__ import annotations

import functools
import unicodedata

import numba
import numpy as np

from pipeline.kernels.minhash import SEPARATOR, SINGLE, decode, unit_tables
from pipeline.kernels.wide import bits_set, copy_bytes, folded, load8, lowest_bit, where_equal

_U = np.uint64
_W = np.uint32
_B = np.uint8
_CODE_POINTS = 0x33480
_PIECE = 1 << 16
_DROPPED = 0xFFFFFFFF
_EACH_01 = np.uint64(0x0101010101010101)
_EACH_80 = np.uint64(0x8080808080808080)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_SPACES = np.uint64(0x2020202020202020)
_KEY_SEED = np.uint64(0xA0761D6478BD642F)
_KEY_LEFT = np.uint64(0xFFE7037ED1A0B428)  # begins with a byte that is in no text, so that no product is 0 at will

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
    while start < end and data[start] < _B(0x80) and spaces[data[start]]:
        start += 1
    while end > start and data[end - 1] < _B(0x80) and spaces[data[end - 1]]:
        end -= 1
    if start == end or (data[start] < _B(0x80) and data[end - 1] < _B(0x80)):
        return start, end
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
def _rewritten(data: np.ndarray, start: int, end: int, raw: bool, table: np.ndarray, scratch: np.ndarray) -> int:
    """The normal form of data[start:end] into scratch; its length. For lines that are not plain ASCII."""
    used = 0
    i = start
    if raw:
        copy_bytes(scratch, 0, data, start, end - start)
        return end - start
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


@numba.njit(cache=True, nogil=True, inline="always")
def _first_bytes(x: np.uint64, count: int) -> np.uint64:
    """The first `count` of eight bytes, 0 behind them."""
    return x & (_U(0xFFFFFFFFFFFFFFFF) >> _U(64 - 8 * count)) if count > 0 else _U(0)


@numba.njit(cache=True, nogil=True, inline="always")
def _key_of(data: np.ndarray, first: int, last: int, plain: bool, salt: np.uint64) -> np.uint64:
    """64-bit hash of data[first:last], never 0, after Wang Yi's wyhash: 16 bytes a step, folded products.

    With `plain` it is the hash of CCNet's normal form, without writing that anywhere; 0 when the bytes are not all
    printable ASCII. 15 bytes behind `last` may be looked at and do not count.
    """
    h = salt ^ _KEY_SEED
    odd = _U(0)
    i = first
    while last - i > 16:
        x, y = load8(data, i), load8(data, i + 8)
        if plain:
            odd |= _odd(x) | _odd(y)
            x, y = _plain(x), _plain(y)
        h = folded(x ^ _KEY_LEFT, y ^ h)
        i += 16
    rest = last - i
    x = _first_bytes(load8(data, i), min(rest, 8))
    y = _first_bytes(load8(data, i + 8), max(rest - 8, 0))
    if plain:
        odd |= _odd(x | ~_first_bytes(_ALL, min(rest, 8)) & _SPACES)
        odd |= _odd(y | ~_first_bytes(_ALL, max(rest - 8, 0)) & _SPACES)
        x, y = _plain(x), _plain(y)
    h = folded(x ^ _KEY_LEFT, y ^ h)
    h = folded(h ^ _KEY_SEED, _U(last - first) ^ _KEY_LEFT)
    return _U(0) if odd else max(h, _U(1))


@numba.njit(cache=True, nogil=True)
def _line_breaks(data: np.ndarray, start: int, end: int, out: np.ndarray) -> int:
    """Where the newlines of data[start:end] are. How many. `out` has room for 64 more than there can be."""
    used = 0
    while start < end and start + 64 <= len(data):
        found = where_equal(data, start, _B(10))
        if end - start < 64:
            found &= (_U(1) << _U(end - start)) - _U(1)
        count = bits_set(found)
        # Three are written whether there are as many or not, so that no branch has to be guessed for each line.
        to = _U(used)
        for i in range(3):
            out[to + _U(i)] = start + lowest_bit(found)
            found &= found - _U(1)
        i = 3
        while i < count:
            out[to + _U(i)] = start + lowest_bit(found)
            found &= found - _U(1)
            i += 1
        used += count
        start += 64
    for j in range(start, end):
        if data[j] == _B(10):
            out[used] = j
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _rewritten_key(
    data: np.ndarray,
    first: int,
    last: int,
    raw: bool,
    table: np.ndarray,
    scratch: np.ndarray,
    salt: np.uint64,
) -> np.uint64:
    """The key of a line of which the normal form has to be written down; 0 when nothing is left of it."""
    used = _rewritten(data, first, last, raw, table, scratch)
    return _key_of(scratch, 0, used, False, salt) if used > 0 else _U(0)


@numba.njit(cache=True, nogil=True)
def _keys_of_rows(
    row: int,
    line: int,
    offsets: np.ndarray,
    data: np.ndarray,
    raw: bool,
    table: np.ndarray,
    spaces: np.ndarray,
    salt: np.ndarray,
    shortest: int,
    scratch: np.ndarray,
    breaks: np.ndarray,
    keys: np.ndarray,
    stops: np.ndarray,
    ends: np.ndarray,
) -> int:
    """From row `row` on, as many rows as there is room for in `keys`: the first that is not done."""
    while row < len(offsets) - 1:
        start, end = offsets[row], offsets[row + 1]
        piece = start  # newlines are looked for in pieces, so that the list of them is short
        while start <= end:
            piece_end = min(piece + len(breaks) - 64, end)
            found = _line_breaks(data, piece, piece_end, breaks)
            piece = piece_end
            if piece_end == end:
                breaks[found] = end
                found += 1
            if line + found > len(keys):
                return row
            for n in range(found):
                stop = breaks[_U(n)]
                first, last = start, stop
                while first < last and data[_U(first)] == _B(32):
                    first += 1
                if first < last and not (_B(32) < data[_U(first)] < _B(127) and _B(32) < data[_U(last - 1)] < _B(127)):
                    first, last = _stripped(data, first, last, spaces)
                key = _U(0)
                if last - first >= shortest:
                    if last + 16 <= len(data):
                        key = _key_of(data, first, last, not raw, salt[row])
                    if key == _U(0):
                        key = _rewritten_key(data, first, last, raw, table, scratch, salt[row])
                keys[_U(line)], stops[_U(line)] = key, stop
                line += 1
                start = stop + 1
        row += 1
        ends[row] = line
    return row


@numba.njit(cache=True, nogil=True)
def _line_keys(
    offsets: np.ndarray,
    data: np.ndarray,
    raw: bool,
    table: np.ndarray,
    spaces: np.ndarray,
    salt: np.ndarray,
    shortest: int,
) -> tuple:  # type: ignore[type-arg]
    rows = len(offsets) - 1
    longest = 0
    for i in range(rows):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.zeros(2 * longest + 24, np.uint8)  # a letter of 2 bytes becomes 4; 16 are read at once
    room = rows + (offsets[rows] - offsets[0]) // 32 + 16
    keys, stops = np.empty(room, np.uint64), np.empty(room, np.int64)
    ends = np.zeros(rows + 1, np.int64)
    breaks = np.empty(_PIECE + 64, np.int64)
    row = 0
    while row < rows:
        row = _keys_of_rows(
            row, ends[row], offsets, data, raw, table, spaces, salt, shortest, scratch, breaks, keys, stops, ends
        )
        if row < rows:
            room *= 2
            keys, stops = _longer(keys, room), _longer(stops, room)
    return keys[: ends[rows]], stops[: ends[rows]], ends


@numba.njit(cache=True, nogil=True)
def _longer(values: np.ndarray, room: int) -> np.ndarray:
    out = np.empty(room, values.dtype)
    out[: len(values)] = values
    return out


def line_keys(
    offsets: np.ndarray, data: np.ndarray, *, normalise: str, salt: np.ndarray, min_bytes: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each line of each string a 64-bit key: (keys uint64 [lines], where each stops in data, offsets int64 [n + 1]).

    Lines are what lies between "\n"; equal keys mean equal normal forms under equal `salt` (uint64 [n]). A blank line,
    one without anything comparable, and one of less than `min_bytes` bytes has key 0. One pass over the bytes.
    """
    tables = line_table(normalise), line_spaces()
    return _line_keys(offsets, data, normalise == "raw", *tables, salt, max(1, min_bytes))  # type: ignore[no-any-return]


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
