"""Components in memory against scipy, and the cover against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.kernels import components


def by_scipy(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes, index = np.unique(np.concatenate([left, right]), return_inverse=True)
    size = (len(nodes), len(nodes))
    graph = coo_array((np.ones(len(left)), (index[: len(left)], index[len(left) :])), shape=size)
    _, label = connected_components(graph, directed=False)
    least = np.full(len(nodes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, label, nodes)
    return nodes, least[label]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_components_are_scipys(edges):
    left, right = (np.array([e[side] for e in edges], np.uint64) << np.uint64(33) for side in (0, 1))
    nodes, roots = components.components(left, right)
    expected_nodes, expected_roots = by_scipy(left, right)
    assert np.array_equal(nodes, expected_nodes)
    assert np.array_equal(roots, expected_roots)
    child, root = components.stars(left, right)
    assert dict(zip(child.tolist(), root.tolist(), strict=True)) == {
        n: r for n, r in zip(nodes.tolist(), roots.tolist(), strict=True) if n != r
    }


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_group_edges_join_what_shares_a_key_and_nothing_else(rows):
    rows = sorted(rows)
    keys = np.array([key for key, _ in rows], np.uint64)
    docs = np.array([doc for _, doc in rows], np.uint64)
    larger, least = components.group_edges(keys, docs)
    groups: dict[int, set[int]] = {}
    for key, doc in rows:
        groups.setdefault(key, set()).add(doc)
    expected = {(doc, min(group)) for group in groups.values() for doc in group if doc != min(group)}
    assert set(zip(larger.tolist(), least.tolist(), strict=True)) == expected


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 12), min_size=1)), max_size=25),
    st.integers(1, 4),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.lists(st.integers(0, 25), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_the_cover_is_greedy_by_rank_and_slices_change_nothing(members, compare, verify, cuts):
    members = sorted(members, key=lambda member: member[0])
    kept: dict[int, list[int]] = {}
    expected = []
    for place, (root, mine) in enumerate(members):
        found = [
            (len(mine & members[k][1]) / len(mine | members[k][1]), -k) for k in kept.setdefault(root, [])[:compare]
        ]
        best = max(found, default=(-1.0, 0))
        if best[0] >= verify:
            expected.append(-best[1])
        else:
            expected.append(place)
            kept[root].append(place)
    cover = components.Cover(len(members), verify, compare)
    edges = sorted({0, len(members), *(c for c in cuts if c < len(members))})
    for begin, end in itertools.pairwise(edges):
        sets = [sorted(mine) for _, mine in members[begin:end]]
        offsets = np.cumsum([0, *map(len, sets)])
        values = np.array([v for s in sets for v in s], np.uint32)
        cover.add(np.array([root for root, _ in members[begin:end]], np.uint64), offsets, values)
    assert cover.match.tolist() == expected


@pytest.mark.parametrize("shape", ["chain", "star"])
def test_a_million_nodes_in_a_chain_or_star_are_one_component(shape):
    nodes = np.random.default_rng(0).permutation(1_000_000).astype(np.uint64)
    left, right = (nodes[:-1], nodes[1:]) if shape == "chain" else (np.full(len(nodes) - 1, nodes[0]), nodes[1:])
    found, roots = components.components(left, right)
    expected, least = by_scipy(left, right)
    assert len(found) == 1_000_000
    assert np.array_equal(found, expected)
    assert np.array_equal(roots, least)
