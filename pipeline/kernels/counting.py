# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Counts of equal 64-bit hash keys: spread by their high bits, then combined within the cache; and counts by sketch."""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.hashing import mix64

_U = np.uint64
_PART_BITS = 10
"""Of the first pass: 1,024 places to write to. Each part is then sorted within the cache."""

_IN_A_PART = 4096
"""Rows of a part, as long as _PART_BITS suffice for that."""

_CELL_BITS = 14
"""Of the second pass at most."""

_IN_A_CELL = 1
"""Rows that have the same high bits after both passes, on average and at most; they are sorted by insertion."""


@numba.njit(cache=True, nogil=True)
def _spread(rows: np.ndarray, out: np.ndarray, low: np.uint64, shift: int, mask: np.uint64, at: np.ndarray) -> None:
    """Rows in order of (key - low) >> shift & mask; at[d + 1]: where those of digit d end. Rows of a digit keep order.

    The digits fit into len(at) - 1.
    """
    by = _U(shift)
    at[:] = 0
    for i in range(len(rows)):
        at[((rows[_U(i), 0] - low) >> by & mask) + _U(1)] += 1
    for digit in range(len(at) - 1):
        at[digit + 1] += at[digit]
    counted = rows.shape[1] == 3
    for i in range(len(rows)):
        digit = (rows[_U(i), 0] - low) >> by & mask
        to = _U(at[digit])
        at[digit] += 1
        out[to, 0] = rows[_U(i), 0]
        out[to, 1] = rows[_U(i), 1]
        if counted:
            out[to, 2] = rows[_U(i), 2]


@numba.njit(cache=True, nogil=True)
def _sort_part(rows: np.ndarray, at: np.ndarray) -> None:
    """Rows that are in order of their high bits in order of key; at[c]: where the rows of cell c end.

    By insertion, which moves a row within its cell only. A cell of many (of a hot key) is sorted in n log n before.
    """
    first = 0
    for cell in range(len(at) - 1):
        if at[cell] - first > 64:
            mine = rows[first : at[cell]]
            mine[:] = mine[np.argsort(mine[:, 0].copy(), kind="mergesort")]
        first = at[cell]
    counted = rows.shape[1] == 3
    before = _U(0)
    for i in range(len(rows)):
        key = rows[_U(i), 0]
        if key >= before:
            before = key
            continue
        place = rows[_U(i), 1]
        count = rows[_U(i), 2] if counted else _U(1)
        j = i
        while j > 0 and rows[_U(j - 1), 0] > key:
            rows[_U(j), 0] = rows[_U(j - 1), 0]
            rows[_U(j), 1] = rows[_U(j - 1), 1]
            if counted:
                rows[_U(j), 2] = rows[_U(j - 1), 2]
            j -= 1
        rows[_U(j), 0] = key
        rows[_U(j), 1] = place
        if counted:
            rows[_U(j), 2] = count


@numba.njit(cache=True, nogil=True)
def _count(rows: np.ndarray, start: int, end: int, used: int, totals: np.ndarray) -> int:
    """Sum rows[start:end], which are in order, by key into rows[used:] and totals[used:]. How many are used then."""
    counted = rows.shape[1] == 3
    if start == end:
        return used
    last, place, total = rows[start, 0] ^ _U(1), _U(0), _U(0)
    at = _U(used - 1)
    for i in range(start, end):  # without a branch: whether a key is the one before cannot be foreseen
        key, here = rows[_U(i), 0], rows[_U(i), 1]
        mine = rows[_U(i), 2] if counted else _U(1)
        same = key == last
        at += _U(0) if same else _U(1)
        place = min(place, here) if same else here
        total = min(total + mine if same else mine, _U(0xFFFFFFFF))
        rows[at, 0], rows[at, 1] = key, place
        totals[at] = total
        last = key
    return np.int64(at) + 1


@numba.njit(cache=True, nogil=True)
def _count_rows(rows: np.ndarray, spare: np.ndarray) -> tuple:  # type: ignore[type-arg]
    total = len(rows)
    low = high = rows[0, 0]
    for i in range(total):
        low, high = min(low, rows[i, 0]), max(high, rows[i, 0])
    width = 0
    while width < 64 and (high - low) >> _U(width) != _U(0):
        width += 1
    parts = 0
    while parts < min(width, _PART_BITS) and total >> parts > _IN_A_PART:
        parts += 1
    edges = np.zeros((1 << parts) + 1, np.int64)
    _spread(rows, spare, low, min(63, width - parts), _U((1 << parts) - 1), edges)
    edges[1:] = edges[:-1].copy()
    edges[0] = 0
    cells = 0
    while cells < min(width - parts, _CELL_BITS) and total >> (parts + cells) > _IN_A_CELL:
        cells += 1
    totals = np.empty(total, np.uint32)
    at = np.zeros((1 << cells) + 1, np.int64)
    used = 0
    for part in range(1 << parts):
        start, end = edges[part], edges[part + 1]
        mine = rows[start:end]
        _spread(spare[start:end], mine, low, min(63, width - parts - cells), _U((1 << cells) - 1), at)
        _sort_part(mine, at)
        used = _count(rows, start, end, used, totals)
    return rows[:used, 0], totals[:used], rows[:used, 1]


def count_keys(rows: np.ndarray, spare: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distinct keys in order, how often each, its least place): uint64, uint32, uint64; two are views of `rows`.

    rows: uint64 [n, 2], key and place, or [n, 3] with a count. They and `spare` (as many rows to work in) are
    overwritten. Two passes that move rows by the high bits of hash keys, the second one within the cache, then
    insertion among the few that are left together: time follows the rows and not their logarithm. Sums stop at
    2^32 - 1.
    """
    if len(rows) == 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint64)
    spare = np.empty_like(rows) if spare is None else spare[: len(rows)]
    return _count_rows(rows, spare)  # type: ignore[no-any-return]


@numba.njit(cache=True, nogil=True)
def add_lines(keys: np.ndarray, ends: np.ndarray, first_row: int, line_bits: int, rows: np.ndarray) -> int:
    """The lines with a key into rows [.., 2]: key, and place (row << line_bits | number of the line). How many.

    `rows` has room for one more than there are lines.
    """
    used = 0
    for row in range(len(ends) - 1):
        start = ends[row]
        for i in range(start, ends[row + 1]):
            rows[used, 0] = keys[i]
            rows[used, 1] = _U((first_row + row) << line_bits) | _U(min(i - start, (1 << line_bits) - 1))
            used += keys[i] != _U(0)
    return used


@numba.njit(cache=True, nogil=True)
def add_to_sketch(keys: np.ndarray, sketch: np.ndarray) -> None:
    """Count keys (0 is none) in a count-min sketch, uint8 [rows, cells], that stops at 255. Cormode 2005."""
    for i in range(len(keys)):
        if keys[i] == _U(0):
            continue
        for row in range(sketch.shape[0]):
            cell = _cell(keys[i], row, sketch.shape[1])
            sketch[row, cell] += np.uint8(sketch[row, cell] < np.uint8(255))


@numba.njit(cache=True, nogil=True)
def more_than(keys: np.ndarray, sketch: np.ndarray, limit: int) -> np.ndarray:
    """Which keys (0: none) the sketch has more than `limit` times (bool): all that came so often, and some others."""
    out = np.zeros(len(keys), np.bool_)
    for i in range(len(keys)):
        out[i] = keys[i] != _U(0)
        for row in range(sketch.shape[0]):
            if sketch[row, _cell(keys[i], row, sketch.shape[1])] <= limit:
                out[i] = False
                break
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _cell(key: np.uint64, row: int, cells: int) -> np.int64:
    return np.int64((mix64(key ^ (_U(row + 1) * _U(0x9E3779B97F4A7C15))) >> _U(32)) * _U(cells) >> _U(32))
