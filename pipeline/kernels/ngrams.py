# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""How much of each document lies in repeated word n-grams: the signals of Gopher's repetition filter.

Two kernels, because published implementations differ in what they count. `repeated_ngrams` works on *classes*: words
that are equal share a number, and an n-gram is a pair (class of its first n - 1 words, class of its last word), so
equality is exact and an n-gram can only repeat where its first n - 1 words do. Documents without repetition end
after a pass or two. `greedy_ngrams` compares n-grams joined without a separator, left to right without overlap.
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.words import HASH_BASE, power

_MIX = np.uint64(0xD6E8FEB86659FD93)

TOP_CONTAINED = 0  # characters inside occurrences of the most frequent n-gram, each counted once
TOP_PRODUCT = 1  # its characters times its count; the first of equally frequent ones; 0 if none occurs twice
TOP_JOINED = 2  # the same with spaces between the words, and also if it occurs once
TOP_ONCE = 3  # as TOP_PRODUCT, and also if it occurs once


@numba.njit(cache=True, nogil=True)
def _table_size(first: np.ndarray) -> int:
    most = 8
    for d in range(len(first) - 1):
        most = max(most, first[d + 1] - first[d])
    size = 16
    while size < 2 * most:
        size *= 2
    return size


@numba.njit(cache=True, nogil=True, inline="always")
def _find(table: np.ndarray, key: int, stamp: int, mask: int, value: int) -> int:
    """The value stored under `key`, or -1 after storing `value` there.

    `table` is uint64 [slots, 2]: the key, and stamp << 32 | value. Slots of other stamps are free.
    """
    slot = np.int64((key * _MIX) >> np.uint64(32)) & mask
    while np.int64(table[slot, 1] >> np.uint64(32)) == stamp:
        if table[slot, 0] == key:
            return np.int64(table[slot, 1] & np.uint64(0xFFFFFFFF))
        slot = (slot + 1) & mask
    table[slot, 0] = key
    table[slot, 1] = np.uint64(stamp << 32 | value)
    return np.int64(-1)


@numba.njit(cache=True, nogil=True, inline="always")
def _next_stamp(table: np.ndarray, stamp: int) -> int:
    """Another stamp, which makes all slots free; after 2 ** 32 - 1 of them the table is emptied."""
    if stamp == 0xFFFFFFFF:
        table[:] = 0
        return 1
    return stamp + 1


@numba.njit(cache=True, nogil=True)
def repeated_ngrams(
    first: np.ndarray,
    hashes: np.ndarray,
    chars: np.ndarray,
    top_n: int,
    last_n: int,
    top_mode: int,
    overlapping: bool = False,
) -> np.ndarray:
    """Characters in repeated n-grams, int64 [documents, last_n - 1]; column n - 2 is for n-grams of n words.

    Up to `top_n`: of the most frequent n-gram, by `top_mode`. Above: characters of all n-grams that occur more than
    once, their first occurrence included, each character once however many such n-grams it lies in, or with
    `overlapping` once for each. Characters are those of the words, without white space (TOP_JOINED apart).
    """
    documents = len(first) - 1
    out = np.zeros((documents, last_n - 1), np.int64)
    size = _table_size(first)
    table = np.zeros((size, 2), np.uint64)
    words, grams = np.zeros(size, np.int64), np.zeros(size, np.int64)
    counts, before = np.zeros(size, np.int64), np.zeros(size, np.int64)
    stamp = np.int64(1)
    for d in range(documents):
        low = first[d]
        n_words = first[d + 1] - low
        mask = 15
        while mask + 1 < 2 * n_words:
            mask = mask * 2 + 1
        for i in range(n_words):
            before[i] = 0
        for i in range(n_words):
            same = _find(table, hashes[low + i], stamp, mask, i)
            if same < 0:
                same = i
            words[i] = grams[i] = same
            before[same] += 1
        stamp = _next_stamp(table, stamp)
        for n in range(2, last_n + 1):
            limit = n_words - n + 1
            repeated = False
            for i in range(n_words):
                counts[i] = 0
            for i in range(limit):
                if before[grams[i]] == 1:
                    grams[i] = i
                    counts[i] = 1
                    continue
                key = np.uint64(grams[i] << 32 | words[i + n - 1])
                same = _find(table, key, stamp, mask, i)
                if same < 0:
                    same = np.int64(i)
                else:
                    repeated = True
                grams[i] = same
                counts[same] += 1
            stamp = _next_stamp(table, stamp)
            if n <= top_n:
                out[d, n - 2] = _top(low, limit, n, grams, counts, chars, top_mode)
            elif repeated:
                covered = 0  # words before this one are counted
                total = 0
                for i in range(limit):
                    if counts[grams[i]] > 1:
                        for k in range(i if overlapping else max(i, covered), i + n):
                            total += chars[low + k]
                        covered = i + n
                out[d, n - 2] = total
            if not repeated and (n >= top_n or top_mode < TOP_JOINED):
                break
            before, counts = counts, before
    return out


@numba.njit(cache=True, nogil=True)
def _top(low: int, limit: int, n: int, grams: np.ndarray, counts: np.ndarray, chars: np.ndarray, top_mode: int) -> int:
    once = top_mode >= TOP_JOINED
    best, best_count, best_chars = -1, 0 if once else 1, 0
    for i in range(limit):
        if grams[i] != i or counts[i] < best_count or (counts[i] == 1 and not once):
            continue
        if counts[i] == best_count and (top_mode != TOP_CONTAINED or best < 0):
            continue
        length = 0
        for k in range(i, i + n):
            length += chars[low + k]
        if counts[i] > best_count or length > best_chars:
            best, best_count, best_chars = i, counts[i], length
    if best < 0:
        return 0
    if top_mode == TOP_JOINED:
        return (best_chars + n - 1) * best_count
    if top_mode != TOP_CONTAINED:
        return best_chars * best_count
    covered, total = 0, 0
    for i in range(limit):
        if grams[i] == best:
            for k in range(max(i, covered), i + n):
                total += chars[low + k]
            covered = i + n
    return total


@numba.njit(cache=True, nogil=True)
def ngram_chars(first: np.ndarray, chars: np.ndarray, n: int) -> np.ndarray:
    """Characters of all n-grams of each document, those in several n-grams counted for each, int64 [documents]."""
    out = np.zeros(len(first) - 1, np.int64)
    for d in range(len(first) - 1):
        for i in range(first[d], first[d + 1] - n + 1):
            for k in range(n):
                out[d] += chars[i + k]
    return out


@numba.njit(cache=True, nogil=True)
def greedy_ngrams(first: np.ndarray, hashes: np.ndarray, chars: np.ndarray, low_n: int, last_n: int) -> np.ndarray:
    """Characters of repeated n-grams as datatrove counts them, int64 [documents, last_n - low_n + 1].

    From left to right: an n-gram (joined without spaces) that was met before counts with all its characters, and
    the scan goes on behind it; any other is remembered, and the scan moves on by one word. An n-gram that occurs
    once changes nothing; so a first pass without branches marks places in a small table, and the scan looks only at
    the n-grams whose place was taken twice.
    """
    documents = len(first) - 1
    out = np.zeros((documents, last_n - low_n + 1), np.int64)
    size = _table_size(first)
    table = np.zeros(size, np.uint64)
    marks, places, maybe = np.zeros(8 * size, np.uint8), np.zeros(size, np.int32), np.zeros(size, np.int32)
    joined, powers, lengths = np.zeros(size, np.uint64), np.zeros(size, np.uint64), np.zeros(size, np.int64)
    short = np.ones(64, np.uint64)
    for k in range(1, 64):
        short[k] = short[k - 1] * HASH_BASE
    for d in range(documents):
        low = first[d]
        n_words = first[d + 1] - low
        shift = np.uint64(64 - 7)
        while 1 << (64 - shift) < 8 * n_words:
            shift -= np.uint64(1)
        for i in range(n_words):
            length = chars[low + i]
            powers[i] = short[length] if length < 64 else power(length)
            joined[i], lengths[i] = hashes[low + i], length
        for n in range(2, last_n + 1):
            limit = n_words - n + 1
            for i in range(limit):
                joined[i] = joined[i] * powers[i + n - 1] + hashes[low + i + n - 1]
                lengths[i] += chars[low + i + n - 1]
            if n < low_n or limit <= 0:
                continue
            marks[: np.int64(1) << np.int64(64 - shift)] = 0
            for i in range(limit):
                place = np.int64((joined[i] * _MIX) >> shift)
                places[i] = place
                marks[place] = marks[place] << 1 | 1
            found = 0
            for i in range(limit):
                maybe[found] = i
                found += marks[places[i]] > 1
            if found:
                out[d, n - low_n] = _scan(maybe[:found], joined, lengths, n, table)
    return out


@numba.njit(cache=True, nogil=True)
def _scan(maybe: np.ndarray, joined: np.ndarray, lengths: np.ndarray, n: int, table: np.ndarray) -> int:
    """Characters of the n-grams at the places `maybe` that were met before, those inside of one skipped."""
    mask = 15
    while mask + 1 < 2 * len(maybe):
        mask = mask * 2 + 1
    table[: mask + 1] = 0
    following, total = 0, 0
    for i in maybe:
        if i < following:
            continue
        key = joined[i] if joined[i] != 0 else np.uint64(1)  # 0 is a free slot
        slot = np.int64((key * _MIX) >> np.uint64(32)) & mask
        while table[slot] != 0 and table[slot] != key:
            slot = (slot + 1) & mask
        if table[slot] == key:
            total += lengths[i]
            following = i + n
        else:
            table[slot] = key
    return total
