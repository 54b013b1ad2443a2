"""Counting by radix is counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.counting import add_lines, add_to_sketch, count_keys, more_than


def by_dictionary(keys, places, counts):
    total: Counter[int] = Counter()
    least: dict[int, int] = {}
    for key, place, count in zip(keys.tolist(), places.tolist(), counts.tolist(), strict=True):
        total[key] += count
        least[key] = min(place, least.get(key, place))
    order = sorted(total)
    return order, [total[key] for key in order], [least[key] for key in order]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from([1, 3, 50, 10**9]), st.sampled_from([0, 9, 40, 63]))
def test_keys_are_counted_as_a_dictionary_does(seed, rows, distinct, shift):
    chance = np.random.default_rng(seed)
    names = chance.integers(0, 2**64, min(distinct, rows + 1), dtype=np.uint64) >> np.uint64(shift)
    keys = names[chance.integers(0, len(names), rows)]
    places = chance.permutation(rows).astype(np.uint64)
    for counts in (None, chance.integers(1, 9, rows).astype(np.uint32)):
        expected = by_dictionary(keys, places, np.ones(rows, np.uint32) if counts is None else counts)
        columns = [keys, places] if counts is None else [keys, places, counts.astype(np.uint64)]
        found = count_keys(np.stack(columns, axis=1))
        assert [column.tolist() for column in found] == list(expected)


def test_two_hot_keys_in_one_cell_cost_no_square_of_their_number():
    keys = np.tile(np.array([1 << 40, (1 << 40) + 1], np.uint64), 500_000)
    keys[:2] = [0, 2**64 - 1]  # so that the others share all their high bits
    found, counts, places = count_keys(np.stack([keys, np.arange(len(keys), dtype=np.uint64)], axis=1))
    assert found.tolist() == [0, 1 << 40, (1 << 40) + 1, 2**64 - 1]
    assert counts.tolist() == [1, 499_999, 499_999, 1]
    assert places.tolist() == [0, 2, 3, 1]


def test_sums_stop_where_32_bits_end():
    rows = np.array([[0, 0, 2**32 - 2], [0, 1, 5]], np.uint64)
    assert count_keys(rows)[1].tolist() == [2**32 - 1]


def test_blank_lines_have_no_place():
    keys, ends = np.array([5, 0, 7, 0, 9], np.uint64), np.array([0, 2, 2, 5], np.int64)
    rows = np.zeros((6, 2), np.uint64)
    used = add_lines(keys, ends, 10, 24, rows)
    assert rows[:used, 0].tolist() == [5, 7, 9]
    assert rows[:used, 1].tolist() == [10 << 24, 12 << 24, 12 << 24 | 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 400), st.sampled_from([1, 30, 300]), st.integers(1, 254))
def test_a_sketch_counts_at_least_what_there_is(seed, rows, distinct, limit):
    chance = np.random.default_rng(seed)
    keys = chance.integers(0, 2**64, distinct, dtype=np.uint64)[chance.integers(0, distinct, rows)]
    keys[::7] = 0
    sketch = np.zeros((4, 64), np.uint8)
    add_to_sketch(keys, sketch)
    assert all(row.sum() <= np.count_nonzero(keys) for row in sketch.astype(int))
    count = Counter(keys.tolist())
    found = more_than(keys, sketch, limit)
    for key, more in zip(keys.tolist(), found.tolist(), strict=True):
        assert more or key == 0 or count[key] <= limit
        assert not (more and key == 0)
