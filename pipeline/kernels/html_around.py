"""What the first model's probabilities say about the blocks around a block, and about those that look like it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.kernels.html_bytes import S_CHARS

SMOOTH_COLUMNS = 24
GROUP_COLUMNS = 10


@numba.njit(cache=True, nogil=True)
def smoothed(parent: Any, element: Any, stats: Any, p: Any) -> Any:
    """float32 [blocks, SMOOTH_COLUMNS]: what the first model's probabilities `p` say about a block's surroundings."""
    n, m = len(element), len(parent)
    out = np.zeros((n, SMOOTH_COLUMNS), np.float32)
    weight = np.zeros(m, np.float32)
    mass = np.zeros(m, np.float32)
    blocks = np.zeros(m, np.float32)
    total_w = np.float32(1e-6)
    total_m = np.float32(0)
    top = np.float32(0)
    for b in range(n):
        w = stats[b, S_CHARS] + np.float32(1)
        weight[element[b]] += w
        mass[element[b]] += w * p[b]
        blocks[element[b]] += 1
        total_w += w
        total_m += w * p[b]
        top = max(top, p[b])
    for e in range(m - 1, 0, -1):
        weight[parent[e]] += weight[e]
        mass[parent[e]] += mass[e]
        blocks[parent[e]] += blocks[e]
    seen_m = np.float32(0)
    ahead = np.zeros(n + 1, np.float32)
    for b in range(n - 1, -1, -1):
        ahead[b] = max(ahead[b + 1] * np.float32(0.9), p[b])
    behind = np.float32(0)
    for b in range(n):
        row = out[b]
        row[0] = p[b]
        for k in range(1, 5):
            row[k] = p[b - k] if b >= k else -1
            row[4 + k] = p[b + k] if b + k < n else -1
        row[9] = behind
        row[10] = ahead[b + 1]
        row[11] = seen_m / (total_m + np.float32(1e-6))
        row[12] = total_m / total_w
        row[13] = top
        row[14] = np.log(total_m + np.float32(1))
        near_w = np.float32(1e-6)
        near_m = np.float32(0)
        for k in range(max(0, b - 8), min(n, b + 9)):
            if k != b:
                w = (stats[k, S_CHARS] + np.float32(1)) / np.float32(1 + abs(k - b))
                near_w += w
                near_m += w * p[k]
        row[15] = near_m / near_w
        up = element[b]
        held = np.float32(1)
        own = stats[b, S_CHARS] + np.float32(1)
        for k in range(4):
            while up > 0 and blocks[up] <= held:
                up = parent[up]
            w = weight[up] - own
            row[16 + k] = (mass[up] - own * p[b]) / w if w > 0.5 else -1
            row[20 + k] = mass[up] / (total_m + np.float32(1e-6))
            held = blocks[up]
        behind = max(behind * np.float32(0.9), p[b])
        seen_m += (stats[b, S_CHARS] + np.float32(1)) * p[b]
    return out


@numba.njit(cache=True, nogil=True)
def grouped(parent: Any, shape: Any, element: Any, stats: Any, p: Any) -> Any:
    """float32 [blocks, GROUP_COLUMNS]: what the first model thinks of the blocks that look alike anywhere on the page.

    Twice: alike are blocks whose element and next two containers have the same tags and classes (posts of a thread,
    cards of a listing), then those with the same tags all the way up. Columns: how many, their share of the text, the
    mean of `p` by text and by block, and the largest, of all but the block itself (-1 without others).
    """
    n, m = len(element), len(parent)
    out = np.zeros((n, GROUP_COLUMNS), np.float32)
    prime = np.uint64(0x9E3779B97F4A7C15)
    chain = np.zeros(m, np.uint64)
    for e in range(1, m):
        chain[e] = (chain[parent[e]] ^ np.uint64(shape[e] & np.uint32(0xFFFF))) * prime
        chain[e] ^= chain[e] >> np.uint64(29)
    page = np.float32(1e-6)
    for b in range(n):
        page += stats[b, S_CHARS] + np.float32(1)
    keys = np.empty(n, np.uint64)
    for which in range(2):
        for b in range(n):
            e = element[b]
            if which:
                keys[b] = chain[e]
            else:
                key = np.uint64(0)
                for _ in range(3):
                    key = (key ^ np.uint64(shape[e])) * prime
                    key ^= key >> np.uint64(29)
                    e = max(parent[e], 0)
                keys[b] = key
        order = np.argsort(keys, kind="mergesort")
        i = 0
        while i < n:
            j = i
            weight, mass, plain = np.float32(0), np.float32(0), np.float32(0)
            first, second = np.float32(-1), np.float32(-1)
            while j < n and keys[order[j]] == keys[order[i]]:
                b = order[j]
                w = stats[b, S_CHARS] + np.float32(1)
                weight += w
                mass += w * p[b]
                plain += p[b]
                if p[b] > first:
                    first, second = p[b], first
                elif p[b] > second:
                    second = p[b]
                j += 1
            for k in range(i, j):
                b = order[k]
                w = stats[b, S_CHARS] + np.float32(1)
                row = out[b, 5 * which :]
                row[0] = j - i
                row[1] = weight / page
                row[2] = (mass - w * p[b]) / (weight - w) if j - i > 1 else -1
                row[3] = (plain - p[b]) / (j - i - 1) if j - i > 1 else -1
                row[4] = second if p[b] >= first else first
            i = j
    return out


@numba.njit(cache=True, nogil=True)
def around(parent: Any, shape: Any, element: Any, stats: Any, p: Any) -> Any:
    """float32 [blocks, SMOOTH_COLUMNS + GROUP_COLUMNS]: the columns of `smoothed`, then those of `grouped`."""
    out = np.empty((len(element), SMOOTH_COLUMNS + GROUP_COLUMNS), np.float32)
    out[:, :SMOOTH_COLUMNS] = smoothed(parent, element, stats, p)
    out[:, SMOOTH_COLUMNS:] = grouped(parent, shape, element, stats, p)
    return out
