import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.html_around import GROUP_COLUMNS, SMOOTH_COLUMNS, around
from pipeline.kernels.html_bytes import S_CHARS, STATS


def columns_of(parent, shape, element, stats, p):
    """The plain twin of `grouped`, in float64."""

    def chain(e):
        return [] if e == 0 else [*chain(parent[e]), shape[e] & 0xFFFF]

    def near(e):
        out = []
        for _ in range(3):
            out.append(shape[e])
            e = max(parent[e], 0)
        return out

    weight = [float(row[S_CHARS]) + 1 for row in stats]
    out = []
    for b in range(len(element)):
        row = []
        for key in (near, chain):
            alike = [k for k in range(len(element)) if key(element[k]) == key(element[b])]
            others = [k for k in alike if k != b]
            row += [len(alike), sum(weight[k] for k in alike) / sum(weight)]
            if others:
                row.append(sum(weight[k] * p[k] for k in others) / sum(weight[k] for k in others))
                row += [sum(p[k] for k in others) / len(others), max(p[k] for k in others)]
            else:
                row += [-1, -1, -1]
        out.append(row)
    return np.array(out).reshape(len(element), GROUP_COLUMNS)


@st.composite
def pages(draw):
    m = draw(st.integers(1, 12))
    parent = [-1] + [draw(st.integers(0, e - 1)) for e in range(1, m)]
    shape = [0] + [draw(st.sampled_from([1, 2, 65537, 131074])) for _ in range(1, m)]
    element = draw(st.lists(st.integers(0, m - 1), max_size=16))
    p = [draw(st.floats(0, 1, width=32)) for _ in element]
    stats = np.zeros((len(element), STATS), np.float32)
    stats[:, S_CHARS] = [draw(st.integers(0, 500)) for _ in element]
    as_32 = np.array(parent, np.int32), np.array(shape, np.uint32), np.array(element, np.int32)
    return *as_32, stats, np.array(p, np.float32)


@given(pages())
@settings(max_examples=60, deadline=None)
def test_blocks_that_look_alike_are_told_what_is_thought_of_the_others(page):
    found = around(*page)
    assert found.shape == (len(page[2]), SMOOTH_COLUMNS + GROUP_COLUMNS)
    np.testing.assert_allclose(found[:, SMOOTH_COLUMNS:], columns_of(*page), atol=2e-3)


def test_a_block_stands_first_in_its_own_columns_and_the_page_edges_say_minus_one():
    parent, shape = np.array([-1, 0, 0, 0], np.int32), np.array([0, 1, 1, 1], np.uint32)
    stats = np.zeros((3, STATS), np.float32)
    stats[:, S_CHARS] = [10, 20, 30]
    p = np.array([0.25, 0.5, 0.75], np.float32)
    found = around(parent, shape, np.array([1, 2, 3], np.int32), stats, p)
    assert found[:, 0].tolist() == [0.25, 0.5, 0.75]
    assert found[:, 1].tolist() == [-1, 0.25, 0.5]
    assert found[:, 5].tolist() == [0.5, 0.75, -1]
