# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""How much of each document lies in repeated word n-grams: the signals of Gopher's repetition filter.

Two kernels, because published implementations differ in what they count. `repeated_ngrams` works on *numbers*: pairs
of words that are equal (by a hash of 64 bits) share a number, and an n-gram is a pair of numbers, of its first and its
last n - 1 words; so it can only repeat where both do. Documents without repetition end after a pass or two.
`greedy_ngrams` compares n-grams joined without a separator, left to right without overlap.
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.kernels.words import HASH_BASE, power

_MIX, _PAIR = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F)

TOP_CONTAINED = 0  # characters inside occurrences of the most frequent n-gram, each counted once
TOP_PRODUCT = 1  # its characters times its count; the first of equally frequent ones; 0 if none occurs twice
TOP_LONGEST = 2  # the same of the longest of equally frequent ones
TOP_JOINED = 3  # as TOP_PRODUCT with spaces between the words, and also if it occurs once
TOP_ONCE = 4  # as TOP_PRODUCT, and also if it occurs once


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

    Cost: two passes over the words without branches; all else looks only at what is repeated.
    """
    documents = len(first) - 1
    out = np.zeros((documents, last_n - 1), np.int64)
    size = _table_size(first)
    table = np.zeros((size, 2), np.uint64)
    marks, at = np.zeros(8 * size, np.uint8), np.zeros(size, np.int32)
    pairs, grams, counts = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    stamp = np.int64(1)
    for d in range(documents):
        low = first[d]
        n_words = first[d + 1] - low
        found = _repeated_pairs(hashes[low : first[d + 1]], pairs, marks, at)
        for n in range(2, last_n + 1):
            if n > 2:  # an n-gram can only repeat where its first n - 1 words and its last n - 1 words do
                possible = 0
                for k in range(found - 1):
                    if at[k + 1] == at[k] + 1:
                        pairs[possible] = np.uint64(grams[k] << 32 | grams[k + 1])
                        at[possible] = at[k]
                        possible += 1
                found = possible
            found = _keep_repeated(found, pairs, at, grams, counts, table, stamp)
            stamp = _next_stamp(table, stamp)
            if n <= top_n:
                if found:
                    out[d, n - 2] = _top(low, found, n, at, grams, counts, chars, top_mode)
                elif top_mode >= TOP_JOINED and n_words >= n:
                    for k in range(n):
                        out[d, n - 2] += chars[low + k]
                    if top_mode == TOP_JOINED:
                        out[d, n - 2] += n - 1
            elif found:
                covered = 0  # words before this one are counted
                total = 0
                for j in range(found):
                    i = np.int64(at[j])
                    for k in range(i if overlapping else max(i, covered), i + n):
                        total += chars[low + k]
                    covered = i + n
                out[d, n - 2] = total
            if not found and (n >= top_n or top_mode < TOP_JOINED):
                break
    return out


@numba.njit(cache=True, nogil=True)
def _repeated_pairs(hashes: np.ndarray, pairs: np.ndarray, marks: np.ndarray, at: np.ndarray) -> int:
    """How many pairs of neighbouring words may occur twice: their places go to `at`, their hashes to `pairs`.

    A place in a table of marks that was taken once has a pair that occurs once.
    """
    limit = len(hashes) - 1
    if limit <= 0:
        return 0
    shift = np.uint64(64 - 7)
    while 1 << (64 - shift) < 8 * limit:
        shift -= np.uint64(1)
    marks[: np.int64(1) << np.int64(64 - shift)] = 0
    for i in range(limit):
        pair = ((hashes[i] ^ hashes[i] >> np.uint64(32)) * _PAIR + hashes[i + 1]) * _MIX
        pairs[i] = pair
        place = np.int64(pair >> shift)
        marks[place] = marks[place] << 1 | 1
    found = 0
    for i in range(limit):
        pair = pairs[i]
        at[found] = i
        pairs[found] = pair
        found += marks[np.int64(pair >> shift)] > 1
    return found


@numba.njit(cache=True, nogil=True)
def _keep_repeated(
    n: int, keys: np.ndarray, at: np.ndarray, grams: np.ndarray, counts: np.ndarray, table: np.ndarray, stamp: int
) -> int:
    """Of the n-grams with the given keys at the places `at`, keep in `at` those that occur twice; how many these are.

    grams[k] names equal n-grams by one number (below n), counts[grams[k]] says how often they occur.
    """
    mask = 15
    while mask + 1 < 2 * n:
        mask = mask * 2 + 1
    for k in range(n):
        same = _find(table, keys[k], stamp, mask, k)
        if same < 0:
            grams[k], counts[k] = k, 1
        else:
            grams[k] = same
            counts[same] += 1
    found = 0
    for k in range(n):
        gram = grams[k]
        at[found], grams[found] = at[k], gram
        found += counts[gram] > 1
    return found


@numba.njit(cache=True, nogil=True)
def _top(
    low: int, found: int, n: int, at: np.ndarray, grams: np.ndarray, counts: np.ndarray, chars: np.ndarray, mode: int
) -> int:
    """Characters of the most frequent of `found` n-grams, which all occur twice at least."""
    best, best_count, best_chars, newest = np.int64(-1), np.int64(1), 0, np.int64(-1)
    for j in range(found):
        gram = grams[j]
        if gram <= newest:
            continue  # met before: numbers rise with the place of the first occurrence
        newest = gram
        if counts[gram] < best_count or (counts[gram] == best_count and mode != TOP_CONTAINED and mode != TOP_LONGEST):
            continue
        length = 0
        for k in range(at[j], at[j] + n):
            length += chars[low + k]
        if counts[gram] > best_count or length > best_chars:
            best, best_count, best_chars = gram, counts[gram], length
    if mode == TOP_JOINED:
        return (best_chars + n - 1) * best_count
    if mode != TOP_CONTAINED:
        return best_chars * best_count
    covered, total = np.int64(0), 0
    for j in range(found):
        if grams[j] == best:
            for k in range(max(np.int64(at[j]), covered), at[j] + n):
                total += chars[low + k]
            covered = np.int64(at[j] + n)
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
