# mypy: disable-error-code="assignment, return-value, arg-type"
# numba's integers are all int64; mypy sees Python's and NumPy's mixed
"""Training byte-level BPE: counting words in Arrow buffers, then merging the most frequent pair again and again.

Sennrich et al. 2016 (arXiv 1508.07909) with the usual index: for each pair its count and the words that hold it, and a
heap whose entries are corrected when they are popped. Ties go to the pair with the smaller ids, so the result is one.
Gives the merges of Hugging Face `tokenizers` for the same words: tests/pipeline/kernels/test_bpe_train.py.
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.bpe import next_word

_PRIME = np.uint64(0x100000001B3)
_START = np.uint64(0xCBF29CE484222325)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@numba.njit(cache=True, nogil=True)
def _hash(data: np.ndarray, start: int, end: int) -> np.uint64:
    value = _START
    for i in range(start, end):
        value = (value ^ np.uint64(data[i])) * _PRIME
    return (value ^ (value >> np.uint64(29))) * _MIX


@numba.njit(cache=True, nogil=True)
def _find(table: np.ndarray, starts: np.ndarray, pool: np.ndarray, data: np.ndarray, start: int, end: int) -> int:
    """The slot of `table` that holds data[start:end], or the free one where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = _hash(data, start, end) >> np.uint64(20) & mask
    while table[slot] >= 0:
        entry = table[slot]
        if starts[entry + 1] - starts[entry] == end - start:
            same = True
            for k in range(end - start):
                if pool[starts[entry] + k] != data[start + k]:
                    same = False
                    break
            if same:
                break
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@numba.njit(cache=True, nogil=True)
def rehash(table: np.ndarray, starts: np.ndarray, pool: np.ndarray, entries: int) -> None:
    """Fill an empty `table` (int64, all -1, a power of two) with the strings pool[starts[i]:starts[i + 1]]."""
    for entry in range(entries):
        table[_find(table, starts, pool, pool, starts[entry], starts[entry + 1])] = entry


@numba.njit(cache=True, nogil=True)
def count_words(
    offsets: np.ndarray,
    data: np.ndarray,
    classes: np.ndarray,
    rules: np.ndarray,
    table: np.ndarray,
    starts: np.ndarray,
    pool: np.ndarray,
    counts: np.ndarray,
    entries: int,
    document: int,
    at: int,
) -> tuple[int, int, int]:
    """Count words from data[at] in `document` on until the end or until `starts` or `pool` might overflow.

    Returns (entries, document, at) to go on from; document == len(offsets) - 1 when all is counted.
    """
    while document < len(offsets) - 1:
        end = offsets[document + 1]
        at = max(at, offsets[document])
        while at < end:
            if 2 * entries + 2 > len(table) or entries + 2 > len(starts):
                return entries, document, at
            stop = next_word(data, at, end, classes, rules)
            if starts[entries] + stop - at > len(pool):
                return entries, document, at
            slot = _find(table, starts, pool, data, at, stop)
            if table[slot] < 0:
                table[slot] = entries
                for k in range(stop - at):
                    pool[starts[entries] + k] = data[at + k]
                starts[entries + 1] = starts[entries] + stop - at
                counts[entries] = 0
                entries += 1
            counts[table[slot]] += 1
            at = stop
        document += 1
    return entries, document, at


@numba.njit(cache=True, nogil=True)
def _grown(array: np.ndarray, needed: int) -> np.ndarray:
    if needed <= len(array):
        return array
    larger = np.empty(max(needed, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger


@numba.njit(cache=True, nogil=True)
def _pair_slot(keys: np.ndarray, key: int) -> int:
    mask = len(keys) - 1
    mixed = (np.uint64(key) ^ (np.uint64(key) >> np.uint64(31))) * _MIX
    slot = np.int64(mixed >> np.uint64(24)) & mask
    while keys[slot] != -1 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _before(count: np.ndarray, key: np.ndarray, a: int, b: int) -> bool:
    """Whether heap entry a is merged before b: more frequent, or as frequent with smaller ids."""
    return count[a] > count[b] or (count[a] == count[b] and key[a] < key[b])


@numba.njit(cache=True, nogil=True)
def _sift_up(heap: np.ndarray, at: int, count: np.ndarray, key: np.ndarray) -> None:
    item = heap[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _before(count, key, item, heap[parent]):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item


@numba.njit(cache=True, nogil=True)
def _sift_down(heap: np.ndarray, size: int, count: np.ndarray, key: np.ndarray) -> None:
    item = heap[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(count, key, heap[child + 1], heap[child]):
            child += 1
        if not _before(count, key, heap[child], item):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@numba.njit(cache=True, nogil=True)
def train(
    word_starts: np.ndarray,
    symbols: np.ndarray,
    word_counts: np.ndarray,
    token_starts: np.ndarray,
    token_pool: np.ndarray,
    tokens: int,
    wanted: int,
    min_frequency: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Merge until there are `wanted` new tokens or no pair is frequent enough.

    word_starts   int64 [words + 1], symbols int32: the tokens of each word (changed here); word_counts int64 [words]
    token_starts  int64 [tokens + 1], token_pool uint8: the bytes of the tokens there are, by id
    Returns (left, right, merged) int64 [merges] and (token_starts, token_pool) with the new tokens behind the old.
    """
    words = len(word_counts)
    sizes = np.diff(word_starts)
    table = np.full(16, -1, np.int64)
    while len(table) < 4 * (tokens + wanted):
        table = np.full(2 * len(table), -1, np.int64)
    rehash(table, token_starts, token_pool, tokens)
    token_starts = _grown(token_starts, tokens + wanted + 2)

    pair_keys = np.full(1 << 16, -1, np.int64)
    pair_counts = np.zeros(1 << 16, np.int64)
    pair_heads = np.full(1 << 16, -1, np.int64)
    used_pairs = 0
    node_word, node_next = np.empty(1 << 16, np.int64), np.empty(1 << 16, np.int64)
    nodes, free_node = 0, np.int64(-1)
    entry_count, entry_key = np.empty(1 << 16, np.int64), np.empty(1 << 16, np.int64)
    entry_head, heap = np.empty(1 << 16, np.int64), np.empty(1 << 16, np.int64)
    entries, heap_size, free_entry = 0, 0, np.int64(-1)
    touched = np.empty(1 << 16, np.int64)
    n_touched = 0
    left, right, merged = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.int64)
    merges, new_tokens = 0, 0

    step = np.int64(-1)  # -1: the first count, over all words; then the words of one popped entry
    node = np.int64(-1)
    a, b, new = np.int64(0), np.int64(0), np.int64(0)
    while True:
        # one word: count all its pairs (first), or merge (a, b) in it and count what changed
        word = np.int64(0)
        while (step < 0 and word < words) or (step >= 0 and node >= 0):
            w = word if step < 0 else node_word[node]
            # pairs that may come into being: of the tokens there are, at first; then those with `new` on one side
            fresh_pairs = min(sizes[w] + 2, tokens * tokens if step < 0 else 2 * (tokens + new_tokens) + 2)
            if 2 * (used_pairs + fresh_pairs) > len(pair_keys):
                larger = 2 * len(pair_keys)
                while larger < 2 * (used_pairs + fresh_pairs):
                    larger *= 2
                keys, counts = np.full(larger, -1, np.int64), np.zeros(larger, np.int64)
                heads = np.full(larger, -1, np.int64)
                for s in range(len(pair_keys)):
                    if pair_keys[s] != -1:
                        t = _pair_slot(keys, pair_keys[s])
                        keys[t], counts[t], heads[t] = pair_keys[s], pair_counts[s], pair_heads[s]
                for t in range(n_touched):
                    touched[t] = _pair_slot(keys, pair_keys[touched[t]])
                pair_keys, pair_counts, pair_heads = keys, counts, heads
            node_word, node_next = _grown(node_word, nodes + fresh_pairs), _grown(node_next, nodes + fresh_pairs)
            touched = _grown(touched, n_touched + fresh_pairs)
            base = word_starts[w]
            size = sizes[w]
            i, into = 0, 0  # the symbols from i on go to `into`
            while i < size - 1 if step < 0 else i < size:
                changes = 0
                if step < 0:
                    i += 1
                    changes = 1
                elif i + 1 < size and symbols[base + i] == a and symbols[base + i + 1] == b:
                    symbols[base + into] = new
                    i += 2
                    changes = 4
                else:
                    symbols[base + into] = symbols[base + i]
                    i += 1
                for change in range(changes):
                    # 0, 1: the pair with the symbol before, as it was and as it is; 2, 3: with the one behind
                    if step < 0:
                        x, y, sign = symbols[base + i - 1], symbols[base + i], 1
                    elif change < 2:
                        if into == 0:
                            continue
                        x, y = symbols[base + into - 1], a if change == 0 else new
                        sign = -1 if change == 0 else 1
                    else:
                        if i >= size:
                            continue
                        x, y = b if change == 2 else new, symbols[base + i]
                        sign = -1 if change == 2 else 1
                    key = (np.int64(x) << 32) | np.int64(y)
                    slot = _pair_slot(pair_keys, key)
                    if pair_keys[slot] == -1:
                        pair_keys[slot] = key
                        used_pairs += 1
                    pair_counts[slot] += sign * word_counts[w]
                    if sign > 0:
                        head = pair_heads[slot]
                        if head < 0:
                            touched[n_touched] = slot
                            n_touched += 1
                        if head < 0 or node_word[head] != w:
                            if free_node >= 0:
                                fresh = free_node
                                free_node = node_next[fresh]
                            else:
                                fresh = np.int64(nodes)
                                nodes += 1
                            node_word[fresh], node_next[fresh] = w, head
                            pair_heads[slot] = fresh
                into += 1
            sizes[w] = size if step < 0 else into
            if step < 0:
                word += 1
            else:
                following = node_next[node]
                node_next[node] = free_node
                free_node = node
                node = following
        # pairs that came into being go on the heap, each with the words that hold it
        entry_count = _grown(entry_count, entries + n_touched)
        entry_key, entry_head = _grown(entry_key, entries + n_touched), _grown(entry_head, entries + n_touched)
        heap = _grown(heap, heap_size + n_touched)
        for t in range(n_touched):
            slot = touched[t]
            if pair_counts[slot] > 0:
                if free_entry >= 0:
                    entry = free_entry
                    free_entry = entry_head[entry]
                else:
                    entry = np.int64(entries)
                    entries += 1
                entry_count[entry], entry_key[entry] = pair_counts[slot], pair_keys[slot]
                entry_head[entry] = pair_heads[slot]
                heap[heap_size] = entry
                heap_size += 1
                _sift_up(heap, heap_size - 1, entry_count, entry_key)
            pair_heads[slot] = -1
        n_touched = 0
        # the most frequent pair; an entry whose count has fallen since goes back to its place
        found = False
        while heap_size > 0 and new_tokens < wanted:
            entry = heap[0]
            count = pair_counts[_pair_slot(pair_keys, entry_key[entry])]
            if entry_count[entry] != count:
                entry_count[entry] = count
                _sift_down(heap, heap_size, entry_count, entry_key)
                continue
            heap_size -= 1
            heap[0] = heap[heap_size]
            if heap_size:
                _sift_down(heap, heap_size, entry_count, entry_key)
            found = count >= max(1, min_frequency)
            break
        if not found:
            break
        a, b, node = entry_key[entry] >> 32, entry_key[entry] & 0xFFFFFFFF, entry_head[entry]
        entry_head[entry] = free_entry
        free_entry = entry
        step += 1
        # the token's bytes; two ways to build the same bytes are the same token
        last = tokens + new_tokens
        size_a, size_b = token_starts[a + 1] - token_starts[a], token_starts[b + 1] - token_starts[b]
        token_pool = _grown(token_pool, token_starts[last] + size_a + size_b)
        end = token_starts[last]
        for k in range(size_a):
            token_pool[end + k] = token_pool[token_starts[a] + k]
        for k in range(size_b):
            token_pool[end + size_a + k] = token_pool[token_starts[b] + k]
        slot = _find(table, token_starts, token_pool, token_pool, end, end + size_a + size_b)
        if table[slot] < 0:
            table[slot] = last
            token_starts[last + 1] = end + size_a + size_b
            new_tokens += 1
        new = table[slot]
        left, right, merged = _grown(left, merges + 1), _grown(right, merges + 1), _grown(merged, merges + 1)
        left[merges], right[merges], merged[merges] = a, b, new
        merges += 1
    total = tokens + new_tokens
    return left[:merges], right[:merges], merged[:merges], token_starts[: total + 1], token_pool[: token_starts[total]]
