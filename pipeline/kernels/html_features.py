"""Features of the blocks of a page, and boosted trees over them.

`features` looks at one block: its text, its tags, what its containers hold, its neighbours, its place. `smoothed`
adds what the first model thought of the blocks around it. Both are float32 [blocks, columns].
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.kernels.html_bytes import (
    S_BOLD,
    S_BREAKS,
    S_CHARS,
    S_COMMAS,
    S_DIGITS,
    S_FIRST,
    S_IMAGES,
    S_LAST,
    S_LINK,
    S_LINKS,
    S_STOPS,
    S_UPPER,
    S_WORDS,
)
from pipeline.kernels.html_tags import HEADING, IN, KIND, TAG

_FLAG_NAMES = (
    "nav header footer aside form article main table list heading hidden button figure quote bold dl code aria_hidden "
    "paragraph cell caption dialog label noscript pre link"
).split()
_FLAG_BITS = np.array([IN[name] for name in _FLAG_NAMES], np.uint32)
_N_FLAGS = len(_FLAG_NAMES)
_LEVELS = 5  # containers looked at, from the block outwards

TOPICS = 64  # class words whose presence around a block is a column of its own
META = 14  # columns about the page that the caller finds

# own text 16, flags, tag 6, cues 10, position 8, neighbours 20, containers 5 x 8, page 12
COLUMNS = 16 + _N_FLAGS + 6 + 10 + 8 + 20 + _LEVELS * 8 + 12 + TOPICS + META
SMOOTH_COLUMNS = 24

_H1, _LI, _TD, _TR, _P, _DIV, _A, _SPAN = (TAG[t] for t in "h1 li td tr p div a span".split())
_BITS = {name: np.uint32(bit) for name, bit in IN.items()}
_ARTICLE, _MAIN, _LIST = _BITS["article"], _BITS["main"], _BITS["list"]
_LONG = 80.0  # characters that make a block a paragraph
POWER, FLOOR, CEILING = 1.1, 0.25, 0.5
BRIDGE = 0.2
_FORMED = _BITS["table"] | _BITS["pre"] | _BITS["code"]


@numba.njit(cache=True, nogil=True)
def features(
    tag: Any,
    parent: Any,
    flags: Any,
    shape: Any,
    cue_start: Any,
    cues: Any,
    element: Any,
    stats: Any,
    digest: Any,
    weights: Any,
    topics: Any,
    meta: Any,
) -> Any:
    """float32 [blocks, COLUMNS].

    `weights` float32 [CUE_BUCKETS] is what each class word speaks for or against, `topics` uint8 [CUE_BUCKETS] its
    number among TOPICS plus 1 (0: none), `meta` float32 [META] is about the page.
    """
    n, m = len(element), len(tag)
    out = np.zeros((n, COLUMNS), np.float32)
    if n == 0:
        return out
    # containers: sums over all blocks below, from the last element to the first
    chars = np.zeros(m, np.float32)
    link = np.zeros(m, np.float32)
    blocks = np.zeros(m, np.float32)
    long_chars = np.zeros(m, np.float32)
    stops = np.zeros(m, np.float32)
    cue = np.zeros(m, np.float32)
    depth = np.zeros(m, np.int32)
    chain_min = np.zeros(m, np.float32)
    chain_max = np.zeros(m, np.float32)
    chain_sum = np.zeros(m, np.float32)
    about = np.zeros(m, np.uint64)
    for e in range(m):
        total = np.float32(0)
        low = np.float32(0)
        high = np.float32(0)
        for k in range(cue_start[e], cue_start[e + 1]):
            w = weights[cues[k]]
            low = min(low, w)
            high = max(high, w)
            total += w
            if topics[cues[k]]:
                about[e] |= np.uint64(1) << np.uint64(topics[cues[k]] - 1)
        cue[e] = low + high + np.float32(0.1) * total
        p = parent[e]
        if p >= 0:
            depth[e] = depth[p] + 1
            chain_min[e] = min(chain_min[p], low)
            chain_max[e] = max(chain_max[p], high)
            chain_sum[e] = chain_sum[p] * np.float32(0.8) + cue[e]
            about[e] |= about[p]
    total_chars = np.float32(0)
    total_link = np.float32(0)
    total_long = np.float32(0)
    in_article = np.float32(0)
    in_main = np.float32(0)
    in_list = np.float32(0)
    for b in range(n):
        e = element[b]
        c = stats[b, S_CHARS]
        chars[e] += c
        link[e] += stats[b, S_LINK]
        blocks[e] += 1
        stops[e] += stats[b, S_STOPS]
        total_chars += c
        total_link += stats[b, S_LINK]
        if c >= _LONG and stats[b, S_LINK] < 0.5 * c:
            long_chars[e] += c
            total_long += c
        if flags[e] & _ARTICLE:
            in_article += c
        if flags[e] & _MAIN:
            in_main += c
        if flags[e] & _LIST:
            in_list += c
    for e in range(m - 1, 0, -1):
        p = parent[e]
        chars[p] += chars[e]
        link[p] += link[e]
        blocks[p] += blocks[e]
        long_chars[p] += long_chars[e]
        stops[p] += stops[e]
    # how often a container's shape occurs among its siblings, and which of them it is
    alike = np.zeros(m, np.float32)
    table_size = 1
    while table_size < 2 * m:
        table_size *= 2
    slots = np.full(table_size, -1, np.int32)
    counts = np.zeros(table_size, np.int32)
    slot_of = np.zeros(m, np.int32)
    for e in range(1, m):
        if blocks[e] == 0:
            continue
        key = (np.uint64(parent[e]) * np.uint64(0x9E3779B97F4A7C15)) ^ (
            np.uint64(shape[e]) * np.uint64(0xC2B2AE3D27D4EB4F)
        )
        s = np.int64((key >> np.uint64(20)) & np.uint64(table_size - 1))
        while slots[s] >= 0 and not (parent[slots[s]] == parent[e] and shape[slots[s]] == shape[e]):
            s = (s + 1) & (table_size - 1)
        if slots[s] < 0:
            slots[s] = e
        counts[s] += 1
        slot_of[e] = s
    for e in range(1, m):
        if blocks[e]:
            alike[e] = counts[slot_of[e]]
    # text that occurs more than once
    order = np.argsort(digest)
    copies = np.ones(n, np.float32)
    i = 0
    while i < n:
        j = i + 1
        while j < n and digest[order[j]] == digest[order[i]]:
            j += 1
        for k in range(i, j):
            copies[order[k]] = j - i
        i = j
    page = max(total_chars, np.float32(1))
    first_h1 = -1
    n_h = 0
    longest = np.float32(0)
    for b in range(n):
        t = tag[element[b]]
        if KIND[t] & HEADING:
            n_h += 1
            if t == _H1 and first_h1 < 0:
                first_h1 = b
        longest = max(longest, stats[b, S_CHARS] - stats[b, S_LINK])
    before = np.float32(0)
    h1_at = np.float32(-1)
    since_heading = 0
    heading_chars = np.float32(0)
    heading_cue = np.float32(0)
    # text between this heading and the next one, and the blocks of the section
    section = np.zeros(n, np.float32)
    run = np.float32(0)
    for b in range(n - 1, -1, -1):
        if KIND[tag[element[b]]] & HEADING:
            section[b] = run
            run = np.float32(0)
        else:
            run += stats[b, S_CHARS] - stats[b, S_LINK]
    last_section = np.float32(0)
    for b in range(n):
        e = element[b]
        c = max(stats[b, S_CHARS], np.float32(1))
        words = max(stats[b, S_WORDS], np.float32(1))
        t = tag[e]
        row = out[b]
        row[0] = np.log(c)
        row[1] = stats[b, S_WORDS]
        row[2] = stats[b, S_LINK] / c
        row[3] = c / words
        row[4] = stats[b, S_DIGITS] / c
        row[5] = stats[b, S_COMMAS]
        row[6] = stats[b, S_STOPS]
        row[7] = stats[b, S_UPPER] / words
        row[8] = stats[b, S_BOLD] / c
        row[9] = stats[b, S_LINKS]
        row[10] = stats[b, S_LAST]
        row[11] = stats[b, S_FIRST]
        row[12] = stats[b, S_BREAKS]
        row[13] = stats[b, S_IMAGES]
        row[14] = copies[b]
        row[15] = (c - stats[b, S_LINK]) / max(longest, np.float32(1))
        at = 16
        for k in range(_N_FLAGS):
            row[at + k] = 1.0 if flags[e] & _FLAG_BITS[k] else 0.0
        at += _N_FLAGS
        row[at] = t
        row[at + 1] = 1.0 if t == _P else 0.0
        row[at + 2] = t - 22 if KIND[t] & HEADING else 0  # h1 … h6 follow each other in TAGS
        row[at + 3] = tag[parent[e]] if parent[e] >= 0 else 0
        row[at + 4] = depth[e]
        row[at + 5] = 1.0 if t == _LI else (2.0 if t == _TD else (3.0 if t == _DIV else 0.0))
        at += 6
        row[at] = cue[e]
        row[at + 1] = chain_min[e]
        row[at + 2] = chain_max[e]
        row[at + 3] = chain_sum[e]
        up = parent[e]
        row[at + 4] = cue[up] if up >= 0 else 0
        up = parent[up] if up >= 0 else -1
        row[at + 5] = cue[up] if up >= 0 else 0
        up = parent[up] if up >= 0 else -1
        row[at + 6] = cue[up] if up >= 0 else 0
        row[at + 7] = heading_cue
        row[at + 8] = chain_sum[element[b - 1]] if b else 0
        row[at + 9] = chain_sum[element[b + 1]] if b + 1 < n else 0
        at += 10
        row[at] = b / n
        row[at + 1] = before / page
        row[at + 2] = (before - h1_at) / page if h1_at >= 0 else -1.0
        row[at + 3] = b - first_h1 if first_h1 >= 0 else 999
        row[at + 4] = since_heading
        row[at + 5] = heading_chars
        row[at + 6] = section[b] if KIND[t] & HEADING else last_section
        row[at + 7] = b
        at += 8
        for k in range(4):
            other = b - 2 + k + (1 if k >= 2 else 0)
            if 0 <= other < n:
                oc = stats[other, S_CHARS]
                row[at] = np.log(max(oc, np.float32(1)))
                row[at + 1] = stats[other, S_LINK] / max(oc, np.float32(1))
                row[at + 2] = tag[element[other]]
                row[at + 3] = stats[other, S_STOPS] / max(stats[other, S_WORDS], np.float32(1))
                row[at + 4] = depth[element[other]] - depth[e]
            else:
                row[at] = -1
            at += 5
        # containers outwards: only those that hold more than the one before
        up = e
        held = np.float32(-1)
        for _ in range(_LEVELS):
            while up > 0 and blocks[up] <= held:
                up = parent[up]
            cc = max(chars[up], np.float32(1))
            row[at] = np.log(cc)
            row[at + 1] = link[up] / cc
            row[at + 2] = cc / page
            row[at + 3] = blocks[up]
            row[at + 4] = long_chars[up] / cc
            row[at + 5] = alike[up]
            row[at + 6] = cue[up]
            row[at + 7] = tag[up]
            held = blocks[up]
            at += 8
        row[at] = np.log(page)
        row[at + 1] = total_link / page
        row[at + 2] = n
        row[at + 3] = total_long / page
        row[at + 4] = np.log(max(longest, np.float32(1)))
        row[at + 5] = n_h
        row[at + 6] = in_article / page
        row[at + 7] = in_main / page
        row[at + 8] = in_list / page
        row[at + 9] = np.log(max(total_long, np.float32(1)))
        row[at + 10] = stops[0] / page
        row[at + 11] = 1.0 if first_h1 >= 0 else 0.0
        at += 12
        bits = about[e]
        for k in range(TOPICS):
            row[at + k] = np.float32((bits >> np.uint64(k)) & np.uint64(1))
        at += TOPICS
        for k in range(META):
            row[at + k] = meta[k]
        before += stats[b, S_CHARS]
        if b == first_h1:
            h1_at = before
        if KIND[t] & HEADING:
            since_heading = 0
            heading_chars = stats[b, S_CHARS]
            heading_cue = chain_sum[e]
            last_section = section[b]
        else:
            since_heading += 1
    return out


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
def boosted(x: Any, feature: Any, threshold: Any, child: Any, value: Any, roots: Any, depths: Any) -> Any:
    """Probabilities float32 [rows] of boosted trees.

    x[feature] <= threshold goes to node `child`, else to `child` + 1. A leaf has threshold inf and itself as child, so
    a whole tree is `depths` steps without a branch, and eight rows go down side by side.
    """
    n = len(x)
    total = np.zeros(n + 8, np.float32)
    node = np.zeros(8, np.int32)
    for tree in range(len(roots)):
        root, depth = roots[tree], depths[tree]
        for start in range(0, n - 7, 8):
            node[:] = root
            for _ in range(depth):
                for k in range(8):
                    at = node[k]
                    node[k] = child[at] + (x[start + k, feature[at]] > threshold[at])
            for k in range(8):
                total[start + k] += value[node[k]]
        for i in range(n - n % 8, n):
            at = root
            for _ in range(depth):
                at = child[at] + (x[i, feature[at]] > threshold[at])
            total[i] += value[at]
    out = np.empty(n, np.float32)
    for i in range(n):
        out[i] = 1.0 / (1.0 + np.exp(-total[i]))
    return out


@numba.njit(cache=True, nogil=True)
def choose(stats: Any, p: Any) -> Any:
    """bool [blocks]: the blocks above the threshold at which the expected F1 of the words is largest.

    With expected hits H and n chosen of an expected total of T words, F1 = 2 H / (n + T); the threshold is held
    between FLOOR and CEILING. When no block reaches it, the likeliest ones that are not links are taken.
    Lipton, Elkan, Naryanaswamy 2014, "Optimal thresholding of classifiers to maximize F1".
    """
    n = len(p)
    out = np.zeros(n, np.bool_)
    total = 0.0
    for b in range(n):
        total += stats[b, S_WORDS] * p[b] ** POWER
    order = np.argsort(-p)
    best, limit, hits, words = 0.0, CEILING, 0.0, 0.0
    for b in order:
        hits += stats[b, S_WORDS] * p[b] ** POWER
        words += stats[b, S_WORDS]
        f = 2 * hits / (words + total + 1e-9)
        if f > best:
            best, limit = f, p[b]
    limit = min(max(limit, FLOOR), CEILING)
    if n and p[order[0]] < limit:
        # unsure of every block, as on a bare page; a page of nothing but links stays empty
        for b in range(n):
            out[b] = p[b] >= 0.5 * p[order[0]] and stats[b, S_LINK] < 0.5 * stats[b, S_CHARS]
        return out
    for b in range(n):
        out[b] = p[b] >= limit
    return out


@numba.njit(cache=True, nogil=True)
def bridged(flags: Any, element: Any, stats: Any, p: Any, chosen: Any) -> Any:
    """bool [blocks]: `chosen`, with the tables and code that stand between chosen blocks and are not unlikely.

    A cell or a line of code is judged by itself, and short ones are doubted; inside of a text they belong to it. The
    mean probability of what stands between must reach BRIDGE.
    """
    n = len(element)
    out = chosen.copy()
    start = -1  # of the blocks since the last chosen one, when all of them are cells or code
    mass = 0.0
    weight = 0.0
    for b in range(n):
        if chosen[b]:
            if 0 <= start < b and mass >= BRIDGE * weight:
                out[start:b] = True
            start, mass, weight = b + 1, 0.0, 0.0
        elif not flags[element[b]] & _FORMED:
            start = -1
        else:
            w = stats[b, S_WORDS] + 1.0
            mass += w * p[b]
            weight += w
    return out
