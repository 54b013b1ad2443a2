"""Operations on many bytes against what Python says of the same bytes."""

from __future__ import annotations

import numba
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels import wide

WORD = st.integers(0, 2**64 - 1)


@numba.njit
def _all(data, index, byte, left, right):
    out = np.zeros(20, np.uint8)
    wide.copy_bytes(out, 3, data, index, 9)
    return (
        wide.load8(data, index),
        wide.where_equal(data, index, byte),
        wide.lowest_bit(left),
        wide.bits_set(left),
        wide.folded(left, right),
        out,
    )


@settings(deadline=None)
@given(st.binary(min_size=80, max_size=80), st.integers(0, 16), WORD, WORD)
def test_each_does_what_its_name_says(data, index, left, right):
    byte = data[index + 7]
    found = _all(np.frombuffer(data, np.uint8), index, np.uint8(byte), np.uint64(left), np.uint64(right))
    assert int(found[0]) == int.from_bytes(data[index : index + 8], "little")
    assert int(found[1]) == sum(1 << i for i in range(64) if data[index + i] == byte)
    assert found[2] == ((left & -left).bit_length() - 1 if left else 64)
    assert found[3] == left.bit_count()
    assert int(found[4]) == (left * right >> 64) ^ (left * right & (2**64 - 1))
    assert found[5].tolist() == [0] * 3 + list(data[index : index + 9]) + [0] * 8
