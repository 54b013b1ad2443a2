"""Taking lines out of Arrow buffers is taking lines out of texts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.line_keys import line_keys
from pipeline.kernels.line_removal import lines_in_table, open_table, without_lines
from pipeline.step import string_buffers

LINE = st.sampled_from(["", " ", "go", " go", "stay", "é stays", "away", "x" * 90])


def removed_by_hand(texts, bad, first):
    """(what is left, lines removed, lines left that are not blank) of each text; `first`: (text, line) that stays."""
    out = []
    for t, text in enumerate(texts):
        lines = text.split("\n")
        goes = [x.strip() in bad and (t, n) != first.get(x.strip()) for n, x in enumerate(lines)]
        left = [x for x, gone in zip(lines, goes, strict=True) if not gone]
        out.append(("\n".join(left), sum(goes), sum(bool(x.strip()) for x in left)))
    return out


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(LINE, min_size=1, max_size=6), min_size=1, max_size=8),
    st.sets(st.sampled_from(["go", "away", "stay"])),
    st.booleans(),
    st.integers(0, 2),
)
def test_exactly_the_lines_of_the_table_go(lines, bad, keep_first, sliced):
    texts = ["\n".join(of_one) for of_one in lines]
    array = pa.array(["go\nbefore"] * sliced + texts + ["behind"], pa.large_string()).slice(sliced, len(texts))
    offsets, data = string_buffers(array)
    address = np.arange(len(texts), dtype=np.uint64) + np.uint64(5)
    salt = np.zeros(len(texts), np.uint64)
    keys, stops, ends = line_keys(offsets, data, normalise="raw", salt=salt)
    first = {}
    for t, of_one in enumerate(lines):
        for n, line in enumerate(of_one):
            first.setdefault(line.strip(), (t, n))
    names = sorted(bad)
    their_keys = line_keys(*string_buffers(pa.array(names, pa.large_string())), normalise="raw", salt=np.zeros(3, "u8"))
    places = [first.get(name, (0, 99)) if keep_first else (-5, -1) for name in names]
    table = open_table(
        their_keys[0],
        np.array([5 + t for t, _ in places], np.uint64),
        np.array([1 + n for _, n in places], np.uint32),
        16,
    )
    goes = lines_in_table(keys, ends, *table, address)
    after, text, removed, left = without_lines(offsets, data, keys, stops, ends, goes)
    expected = removed_by_hand(texts, bad, first if keep_first else {})
    assert [removed.tolist(), left.tolist()] == [[n for _, n, _ in expected], [n for _, _, n in expected]]
    if removed.any():
        made = pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(after), pa.py_buffer(text))
        assert made.to_pylist() == [t for t, _, _ in expected]
    else:
        assert len(text) == 0  # nothing was copied
