# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Counts of equal 64-bit hash keys: sorted by their high bits, then combined where they lie; and counts by sketch."""

from __future__ import annotations

import numba
import numpy as np

_U = np.uint64
_DIGIT_BITS = 9
"""Bits of one pass of the sort: 512 places to write to stay within the cache."""

_IN_A_CELL = 8
"""Rows that the sort by high bits leaves together, on average; they are sorted by insertion."""


@numba.njit(cache=True, nogil=True)
def _by_digit(keys: np.ndarray, counts: np.ndarray, places: np.ndarray, low: np.uint64, shift: int, out: tuple) -> None:  # type: ignore[type-arg]
    """One stable pass: rows in order of the _DIGIT_BITS bits of key - low above `shift`."""
    out_keys, out_counts, out_places = out
    mask = _U((1 << _DIGIT_BITS) - 1)
    at = np.zeros((1 << _DIGIT_BITS) + 1, np.int64)
    by = _U(shift)
    for i in range(len(keys)):
        at[((keys[i] - low) >> by & mask) + _U(1)] += 1
    for digit in range(1 << _DIGIT_BITS):
        at[digit + 1] += at[digit]
    one = len(counts) == 1
    for i in range(len(keys)):
        digit = (keys[i] - low) >> by & mask
        to = at[digit]
        at[digit] = to + 1
        out_keys[to] = keys[i]
        out_places[to] = places[i]
        if not one:
            out_counts[to] = counts[i]


@numba.njit(cache=True, nogil=True)
def _sort_cell(keys: np.ndarray, counts: np.ndarray, places: np.ndarray) -> None:
    """A few rows in order of key and place. Many in one cell (a hot key) are sorted in n log n."""
    one = len(counts) == 1
    if len(keys) > 64:
        order = np.argsort(keys, kind="mergesort")
        keys[:] = keys[order]
        places[:] = places[order]
        if not one:
            counts[:] = counts[order]
        return
    for i in range(1, len(keys)):
        key, place = keys[i], places[i]
        count = counts[0] if one else counts[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            places[j] = places[j - 1]
            if not one:
                counts[j] = counts[j - 1]
            j -= 1
        keys[j] = key
        places[j] = place
        if not one:
            counts[j] = count


@numba.njit(cache=True, nogil=True)
def _combined(keys: np.ndarray, counts: np.ndarray, places: np.ndarray, low: np.uint64, shift: int) -> tuple:  # type: ignore[type-arg]
    """Cells of equal (key - low) >> shift are together and in order: sort each, sum what is equal, in place."""
    one = len(counts) == 1
    totals = np.empty(len(keys), np.uint32)
    used = 0
    start = 0
    by = _U(shift)
    while start < len(keys):
        cell = (keys[start] - low) >> by
        end = start + 1
        while end < len(keys) and (keys[end] - low) >> by == cell:
            end += 1
        if end - start > 1:
            _sort_cell(keys[start:end], counts if one else counts[start:end], places[start:end])
        first = used
        for i in range(start, end):
            mine = np.int64(1 if one else counts[i])
            if used > first and keys[used - 1] == keys[i]:
                totals[used - 1] = min(np.int64(totals[used - 1]) + mine, np.int64(0xFFFFFFFF))
                places[used - 1] = min(places[used - 1], places[i])
            else:
                keys[used] = keys[i]
                places[used] = places[i]
                totals[used] = mine
                used += 1
        start = end
    return keys[:used], totals[:used], places[:used]


def count_keys(
    keys: np.ndarray, places: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distinct keys in order, their summed counts uint32, least place of each) of uint64 rows; counts None are ones.

    Two or three passes that move rows by the high bits of hash keys, then insertion among the few that are left
    together: time follows the rows and not their logarithm. The inputs may be overwritten. Sums stop at 2^32 - 1.
    """
    if len(keys) < 2:
        return keys, np.ones(len(keys), np.uint32) if counts is None else counts, places
    counts = np.ones(1, np.uint32) if counts is None else counts
    low, high = keys.min(), keys.max()
    width = int(high - low).bit_length()
    wanted = min(width, (len(keys) // _IN_A_CELL).bit_length())
    passes = max(1, -(-wanted // _DIGIT_BITS))
    shift = max(0, width - passes * _DIGIT_BITS)
    spare = np.empty_like(keys), np.empty_like(counts), np.empty_like(places)
    rows = (keys, counts, places)
    for number in range(passes):
        _by_digit(*rows, low, shift + number * _DIGIT_BITS, spare)
        rows, spare = (spare[0], spare[1] if len(counts) > 1 else counts, spare[2]), rows
    return _combined(*rows, low, shift)  # type: ignore[no-any-return]


@numba.njit(cache=True, nogil=True)
def add_lines(
    keys: np.ndarray, ends: np.ndarray, first_row: int, line_bits: int, to_keys: np.ndarray, to_places: np.ndarray
) -> int:
    """The lines with a key into two arrays: key, and place (row << line_bits | number of the line). How many."""
    used = 0
    for row in range(len(ends) - 1):
        start = ends[row]
        for i in range(start, ends[row + 1]):
            to_keys[used] = keys[i]
            to_places[used] = _U((first_row + row) << line_bits) | _U(min(i - start, (1 << line_bits) - 1))
            used += keys[i] != _U(0)
    return used
