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
def without_lines(
    offsets: np.ndarray,
    data: np.ndarray,
    keys: np.ndarray,
    stops: np.ndarray,
    line_offsets: np.ndarray,
    slots: np.ndarray,
    where: np.ndarray,
    number: np.ndarray,
    address: np.ndarray,
    keep_first: bool,
) -> tuple:  # type: ignore[type-arg]
    """The strings without the lines whose key is in the table: (offsets, bytes, lines removed [n], lines left [n]).

    `keys`, `stops` and `line_offsets` are those of `line_keys`. With `keep_first` the occurrence at the table's
    (address, line) stays; `address` uint64 [n] are the rows'. All that stays side by side, over any number of strings,
    is copied together; where nothing goes nothing is copied, and the bytes are empty.
    """
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0], np.uint8)
    ends = np.zeros(rows + 1, np.int64)
    removed = np.zeros(rows, np.int64)
    left = np.zeros(rows, np.int64)
    mask = _U(len(slots) - 1)
    used = np.int64(0)  # of `out`, with the run that is not copied yet
    low = high = offsets[0]  # data[low:high] is that run
    for row in range(rows):
        start = offsets[row]
        any_line = False
        for n in range(line_offsets[row], line_offsets[row + 1]):
            stop = stops[n]
            key = keys[n]
            goes = False
            if key != _U(0):
                slot = key & mask
                while slots[slot] != _U(0) and slots[slot] != key:
                    slot = (slot + _U(1)) & mask
                goes = slots[slot] == key
                if goes and keep_first and where[slot] == address[row] and number[slot] == n - line_offsets[row]:
                    goes = False
            if goes:
                removed[row] += 1
            else:
                left[row] += 1 if key != _U(0) else 0
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
