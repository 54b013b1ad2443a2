# mypy: disable-error-code="assignment,arg-type,return-value,call-arg"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Lines taken out of texts: a table of their keys, and what is left of Arrow buffers without them."""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.wide import copy_bytes

_U = np.uint64


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
def lines_in_table(
    keys: np.ndarray,
    line_offsets: np.ndarray,
    slots: np.ndarray,
    where: np.ndarray,
    number: np.ndarray,
    address: np.ndarray,
) -> np.ndarray:
    """Which lines go (bool): those whose key is in the table, from its (where, number) on.

    `address` uint64 [n] are the strings'; lines of one are counted from 0. Place (0, 0): all go.
    """
    out = np.zeros(len(keys), np.bool_)
    mask = _U(len(slots) - 1)
    for row in range(len(address)):
        start = line_offsets[row]
        for n in range(start, line_offsets[row + 1]):
            key = keys[_U(n)]
            slot = key & mask
            while slots[slot] != _U(0) and slots[slot] != key:
                slot = (slot + _U(1)) & mask
            if key != _U(0) and slots[slot] == key:
                before = address[row] < where[slot] or (address[row] == where[slot] and n - start < number[slot])
                out[n] = not before
    return out


@numba.njit(cache=True, nogil=True)
def without_lines(
    offsets: np.ndarray,
    data: np.ndarray,
    keys: np.ndarray,
    stops: np.ndarray,
    line_offsets: np.ndarray,
    goes: np.ndarray,
) -> tuple:  # type: ignore[type-arg]
    """The strings without the lines that go: (offsets, bytes, lines removed [n], lines left that are not blank [n]).

    `keys`, `stops` and `line_offsets` are those of `line_keys`. All that stays side by side, in one or many strings, is
    copied together; where nothing goes nothing is copied, and the bytes are empty.
    """
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0], np.uint8)
    ends = np.zeros(rows + 1, np.int64)
    removed = np.zeros(rows, np.int64)
    left = np.zeros(rows, np.int64)
    used = np.int64(0)  # of `out`, with the run that is not copied yet
    low = high = offsets[0]  # data[low:high] is that run
    for row in range(rows):
        start = offsets[row]
        any_line = False
        for n in range(line_offsets[row], line_offsets[row + 1]):
            stop = stops[_U(n)]
            if goes[_U(n)]:
                removed[row] += 1
            else:
                left[row] += 1 if keys[_U(n)] != _U(0) else 0
                begin = start - 1 if any_line else start  # with the line break before it
                any_line = True
                if begin != high:
                    copy_bytes(out, used - (high - low), data, low, high - low)
                    low = begin
                high = stop
                used += stop - begin
            start = stop + 1
        ends[row + 1] = used
    if used < len(out):
        copy_bytes(out, used - (high - low), data, low, high - low)
    else:
        used = np.int64(0)
    return ends, out[:used], removed, left
