"""Blocks of a page that look alike: what they have in common, and what the first model thinks of them.

A forum's posts, a shop's goods and a menu's entries each share their tags and classes, wherever they stand. Blocks are
grouped by five keys: block and parent (tag and class); the tags from the root down; the tags and classes from the root
down; those of the parent alone; and the letters of the text.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.kernels.html_bytes import S_CHARS, S_LINK, S_STOPS, S_WORDS

_SHAPES = 4  # groups by markup; one more by text
GROUP_COLUMNS = 1 + 5 * _SHAPES
OPINION_COLUMNS = _SHAPES + 8
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)


@numba.njit(cache=True, nogil=True)
def groups(tag: Any, parent: Any, shape: Any, element: Any, digest: Any) -> Any:
    """int32 [_SHAPES + 1, blocks]: the number of each block's group by each key."""
    n, m = len(element), len(tag)
    by_tags = np.zeros(m, np.uint64)
    by_shapes = np.zeros(m, np.uint64)
    for e in range(m):
        up = parent[e]
        a = ((by_tags[up] if up >= 0 else np.uint64(7)) ^ np.uint64(tag[e])) * _MIX
        b = ((by_shapes[up] if up >= 0 else np.uint64(7)) ^ np.uint64(shape[e])) * _MIX
        by_tags[e] = a ^ (a >> _SHIFT)
        by_shapes[e] = b ^ (b >> _SHIFT)
    keys = np.zeros((_SHAPES + 1, n), np.uint64)
    for b in range(n):
        e = element[b]
        up = max(parent[e], 0)
        keys[0, b] = np.uint64(shape[e]) * _MIX + np.uint64(shape[up])
        keys[1, b] = by_tags[e]
        keys[2, b] = by_shapes[e]
        keys[3, b] = by_shapes[up]
        keys[4, b] = digest[b]
    out = np.zeros((_SHAPES + 1, n), np.int32)
    for k in range(_SHAPES + 1):
        order = np.argsort(keys[k])
        number = 0
        for i in range(n):
            if i and keys[k, order[i]] != keys[k, order[i - 1]]:
                number += 1
            out[k, order[i]] = number
    return out


@numba.njit(cache=True, nogil=True)
def group_features(group: Any, stats: Any) -> Any:
    """float32 [blocks, GROUP_COLUMNS]: earlier copies of the text; size, length, links and stops of each group."""
    n = len(stats)
    out = np.zeros((n, GROUP_COLUMNS), np.float32)
    copies = np.zeros(n, np.float32)
    total = np.float32(1e-6)
    for b in range(n):
        out[b, 0] = copies[group[_SHAPES, b]]
        copies[group[_SHAPES, b]] += 1
        total += stats[b, S_CHARS]
    for k in range(_SHAPES):
        sums = np.zeros((n, 5), np.float32)
        for b in range(n):
            row = sums[group[k, b]]
            row[0] += 1
            row[1] += stats[b, S_CHARS]
            row[2] += stats[b, S_LINK]
            row[3] += stats[b, S_STOPS]
            row[4] += stats[b, S_WORDS]
        for b in range(n):
            row = sums[group[k, b]]
            at = 1 + 5 * k
            out[b, at] = np.log(row[0])
            out[b, at + 1] = np.log(row[1] / row[0] + np.float32(1))
            out[b, at + 2] = row[2] / max(row[1], np.float32(1))
            out[b, at + 3] = row[3] / max(row[4], np.float32(1))
            out[b, at + 4] = row[1] / total
    return out


@numba.njit(cache=True, nogil=True)
def opinions(group: Any, parent: Any, element: Any, stats: Any, p: Any) -> Any:
    """float32 [blocks, OPINION_COLUMNS]: what the first model's probabilities `p` say of a block's likes.

    The mean of the others in each group, the best of the first group, that of the text's first copy; then how the block
    lies to the one container whose whole text would have the largest expected F1.
    """
    n, m = len(element), len(parent)
    out = np.zeros((n, OPINION_COLUMNS), np.float32)
    first = np.full(n, -1, np.int32)
    best = np.zeros(n, np.float32)
    for b in range(n):
        g = group[_SHAPES, b]
        if first[g] < 0:
            first[g] = b
        best[group[0, b]] = max(best[group[0, b]], p[b])
    for k in range(_SHAPES):
        weight = np.zeros(n)
        mass = np.zeros(n)
        for b in range(n):
            w = stats[b, S_CHARS] + 1.0
            weight[group[k, b]] += w
            mass[group[k, b]] += w * p[b]
        for b in range(n):
            w = stats[b, S_CHARS] + 1.0
            rest = weight[group[k, b]] - w
            out[b, k] = (mass[group[k, b]] - w * p[b]) / rest if rest > 0.5 else -1.0
    # containers
    weight = np.zeros(m)
    mass = np.zeros(m)
    total = 0.0
    for b in range(n):
        w = stats[b, S_CHARS] + 1.0
        weight[element[b]] += w
        mass[element[b]] += w * p[b]
        total += w * p[b]
    for e in range(m - 1, 0, -1):
        weight[parent[e]] += weight[e]
        mass[parent[e]] += mass[e]
    f1 = np.zeros(m)
    top = 0
    for e in range(m):
        f1[e] = 2 * mass[e] / (weight[e] + total + 1e-6)
        if f1[e] >= f1[top] - 1e-9:
            top = e
    inside = np.zeros(m, np.bool_)
    steps = np.zeros(m, np.int32)  # up to the first element that holds or is held by the best one
    above = np.zeros(m, np.bool_)
    e = top
    while e >= 0:
        above[e] = True
        e = parent[e]
    around = np.zeros(m)
    for e in range(m):
        up = parent[e]
        inside[e] = e == top or (up >= 0 and inside[up])
        around[e] = max(f1[e], around[up] if up >= 0 else 0.0)
        if not inside[e] and not above[e]:
            steps[e] = steps[up] + 1
    for b in range(n):
        e = element[b]
        row = out[b]
        row[_SHAPES] = best[group[0, b]]
        row[_SHAPES + 1] = p[first[group[_SHAPES, b]]]
        row[_SHAPES + 2] = 1.0 if inside[e] else 0.0
        row[_SHAPES + 3] = f1[top]
        row[_SHAPES + 4] = around[e] / (f1[top] + 1e-9)
        row[_SHAPES + 5] = mass[top] / (total + 1e-6)
        row[_SHAPES + 6] = steps[e]
        row[_SHAPES + 7] = weight[top]
    return out
