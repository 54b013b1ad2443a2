# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Kullback-Leibler divergence of each document's tokens from a corpus' token counts."""

from __future__ import annotations

import numba
import numpy as np

TOP = 5
"""How many of the tokens that contribute most are kept."""

_MIX = np.uint64(0xD6E8FEB86659FD93)


@numba.njit(cache=True, nogil=True)
def buckets_of(first: np.ndarray, tokens: np.ndarray, salts: np.ndarray, bits: int) -> np.ndarray:
    """Bucket (int32, below 2 ** bits) of each token hash; documents with other salts have other buckets."""
    out = np.empty(len(tokens), np.int32)
    shift = np.uint64(64 - bits)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1]):
            value = (tokens[i] ^ salts[d]) * _MIX
            value = (value ^ (value >> np.uint64(32))) * _MIX
            out[i] = np.int32(value >> shift)
    return out


@numba.njit(cache=True, nogil=True)
def divergences(
    first: np.ndarray,
    buckets: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    types: np.ndarray,
    smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(divergence float64 [documents], top int64 [documents, TOP]).

    D(p || q) = sum over the document's tokens of p log(p / q) in nats, with p its relative frequencies and
    q = (c + smoothing) / (N + smoothing * (T + 1)), where the counts c and their sum N leave the document itself
    out and T = types[d] is the number of distinct tokens. `totals[d]` is N with the document in it. A document
    without tokens has NaN. `top` are places of the tokens that contribute most (their first occurrence), or -1.
    """
    documents = len(first) - 1
    out = np.full(documents, np.nan)
    top = np.full((documents, TOP), -1, np.int64)
    most = 8
    for d in range(documents):
        most = max(most, first[d + 1] - first[d])
    size = 16
    while size < 2 * most:
        size *= 2
    stamps, keys, seen = np.full(size, -1, np.int64), np.zeros(size, np.int32), np.zeros(size, np.int64)
    places, used = np.zeros(size, np.int64), np.zeros(size, np.int64)
    parts = np.zeros(TOP)
    for d in range(documents):
        n = first[d + 1] - first[d]
        if n == 0:
            continue
        mask = 15
        while mask + 1 < 2 * n:
            mask = mask * 2 + 1
        distinct = 0
        for i in range(first[d], first[d + 1]):
            key = buckets[i]
            slot = np.int64((np.uint64(key) * _MIX) >> np.uint64(32)) & mask
            while stamps[slot] == d and keys[slot] != key:
                slot = (slot + 1) & mask
            if stamps[slot] != d:
                stamps[slot], keys[slot], seen[slot], places[slot] = d, key, 0, i
                used[distinct] = slot
                distinct += 1
            seen[slot] += 1
        rest = totals[d] - n + smoothing * (types[d] + 1)
        parts[:] = -np.inf
        total = 0.0
        for k in range(distinct):
            slot = used[k]
            share = seen[slot] / n
            others = counts[keys[slot]] - seen[slot] + smoothing
            part = share * np.log(share * rest / others)
            total += part
            if part > parts[TOP - 1]:
                j = TOP - 1
                while j > 0 and part > parts[j - 1]:
                    parts[j], top[d, j] = parts[j - 1], top[d, j - 1]
                    j -= 1
                parts[j], top[d, j] = part, places[slot]
        out[d] = total
    return out, top


@numba.njit(cache=True, nogil=True)
def rare_words(
    first: np.ndarray, buckets: np.ndarray, counted: np.ndarray, counts: np.ndarray, min_count: int
) -> np.ndarray:
    """(words that occur fewer than `min_count` times outside of their document, words) of each, int64 [documents, 2].

    `counts` are those of the whole corpus, this document in it; only words with `counted` matter.
    """
    out = np.zeros((len(first) - 1, 2), np.int64)
    most = 8
    for d in range(len(first) - 1):
        most = max(most, first[d + 1] - first[d])
    size = 16
    while size < 2 * most:
        size *= 2
    stamps, keys, seen = np.full(size, -1, np.int64), np.zeros(size, np.int32), np.zeros(size, np.int64)
    used = np.zeros(size, np.int64)
    for d in range(len(first) - 1):
        mask = 15
        while mask + 1 < 2 * (first[d + 1] - first[d]):
            mask = mask * 2 + 1
        distinct = 0
        for i in range(first[d], first[d + 1]):
            if not counted[i]:
                continue
            out[d, 1] += 1
            key = buckets[i]
            slot = np.int64((np.uint64(key) * _MIX) >> np.uint64(32)) & mask
            while stamps[slot] == d and keys[slot] != key:
                slot = (slot + 1) & mask
            if stamps[slot] != d:
                stamps[slot], keys[slot], seen[slot] = d, key, 0
                used[distinct] = slot
                distinct += 1
            seen[slot] += 1
        for k in range(distinct):
            slot = used[k]
            if counts[keys[slot]] - seen[slot] < min_count:
                out[d, 0] += seen[slot]
    return out


@numba.njit(cache=True, nogil=True)
def count_tokens(first: np.ndarray, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [documents + 1], values uint32): each document's distinct tokens, sorted, then their counts."""
    offsets = np.zeros(len(first), np.int64)
    out = np.empty(2 * (first[-1] - first[0]), np.uint32)
    n = 0
    for d in range(len(first) - 1):
        tokens = np.sort(buckets[first[d] : first[d + 1]])
        distinct = 0
        for i in range(len(tokens)):
            distinct += i == 0 or tokens[i] != tokens[i - 1]
        k = -1
        for i in range(len(tokens)):
            if i == 0 or tokens[i] != tokens[i - 1]:
                k += 1
                out[n + k], out[n + distinct + k] = np.uint32(tokens[i]), 0
            out[n + distinct + k] += np.uint32(1)
        n += 2 * distinct
        offsets[d + 1] = n
    return offsets, out[:n]


@numba.njit(nogil=True, cache=True)
def symmetric_divergence(
    tokens: np.ndarray, counts: np.ndarray, other_tokens: np.ndarray, other_counts: np.ndarray, smoothing: float
) -> float:
    """(D(p || q) + D(q || p)) / 2 in nats of two documents' sorted distinct tokens with their counts.

    Both are smoothed over the union V of their tokens: p(t) = (count(t) + smoothing) / (n + smoothing |V|).
    """
    i, j, union = 0, 0, 0
    n, m = 0.0, 0.0
    for k in range(len(counts)):
        n += counts[k]
    for k in range(len(other_counts)):
        m += other_counts[k]
    while i < len(tokens) or j < len(other_tokens):
        left = j == len(other_tokens) or (i < len(tokens) and tokens[i] <= other_tokens[j])
        right = i == len(tokens) or (j < len(other_tokens) and other_tokens[j] <= tokens[i])
        i += left
        j += right
        union += 1
    n += smoothing * union
    m += smoothing * union
    i, j, total = 0, 0, 0.0
    while i < len(tokens) or j < len(other_tokens):
        left = j == len(other_tokens) or (i < len(tokens) and tokens[i] <= other_tokens[j])
        right = i == len(tokens) or (j < len(other_tokens) and other_tokens[j] <= tokens[i])
        p, q = smoothing, smoothing
        if left:
            p += counts[i]
            i += 1
        if right:
            q += other_counts[j]
            j += 1
        p, q = p / n, q / m
        total += (p - q) * np.log(p / q)
    return total / 2
