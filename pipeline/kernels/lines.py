# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Lines and paragraphs of a batch of documents, and which of them repeat, from Arrow string buffers."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numba
import numpy as np

from pipeline.kernels.characters import LINE_BREAK, REPLACEMENT, SPACE, decode, flags_of
from pipeline.kernels.words import HASH_BASE, power


@dataclass(frozen=True)
class Lines:
    """The lines of document d are [first[d], first[d + 1]) of the other arrays.

    first                    int64 [documents + 1]
    start, end               int64: byte offsets, the line break left out
    strip_start, strip_end   int64: the same without white space around; both are `end` for a blank line
    chars, lead, trail       int32: characters in all, and of white space before and behind (blank: all lead)
    head, tail               int32: code point of the first and last character that is not white space, or -1
    last                     int32: code point of the last character, or -1
    hash, lstrip_hash, rstrip_hash, strip_hash    uint64: as in Words.hash
    """

    first: np.ndarray
    start: np.ndarray
    end: np.ndarray
    strip_start: np.ndarray
    strip_end: np.ndarray
    chars: np.ndarray
    lead: np.ndarray
    trail: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    last: np.ndarray
    hash: np.ndarray
    lstrip_hash: np.ndarray
    rstrip_hash: np.ndarray
    strip_hash: np.ndarray

    def counts(self) -> np.ndarray:
        """Lines per document, int64."""
        return np.diff(self.first)

    def blank(self) -> np.ndarray:
        """Which lines hold white space only, bool."""
        return self.head < 0


def split_lines(offsets: np.ndarray, data: np.ndarray, *, universal: bool) -> Lines:
    """Split each document at line breaks.

    `universal` is str.splitlines(): all of Unicode's line breaks, and no empty line behind the last one. Without
    it, str.split("\\n"). Two passes over the bytes.
    """
    room = _count_breaks(offsets, data, universal) + len(offsets)
    first = np.zeros(len(offsets), np.int64)
    places = np.empty((4, room), np.int64)
    small = np.empty((6, room), np.int32)
    hashes = np.empty((4, room), np.uint64)
    n = _split(offsets, data, universal, first, places, small, hashes)
    return Lines(first, *(row[:n] for table in (places, small, hashes) for row in table))


@numba.njit(cache=True, nogil=True)
def has_other_breaks(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Which documents have a line break besides the line feed, bool [documents].

    One pass over the bytes, without branches, so that the compiler can run it on many bytes at once.
    """
    out = np.zeros(len(offsets) - 1, np.bool_)
    for d in range(len(offsets) - 1):
        part = data[offsets[d] : offsets[d + 1]]
        found = np.uint8(len(part) > 0 and _is_break(part[0], np.uint8(0)))
        for i in range(len(part) - 1):
            found |= _is_break(part[i + 1], part[i])
        out[d] = found != 0
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _is_break(byte: int, before: int) -> int:
    """1 at a vertical tab, form feed, carriage return, separator, and at the end of U+0085 and (nearly) U+2028/9."""
    control = (np.uint8(byte - np.uint8(11)) <= 2) | (np.uint8(byte - np.uint8(28)) <= 2)
    return np.uint8(control | ((byte == 0x85) & (before == 0xC2)) | (((byte & 0xFE) == 0xA8) & (before == 0x80)))


def universal_lines(lines: Lines, offsets: np.ndarray, data: np.ndarray) -> Lines:
    """The lines of str.splitlines() from those of str.split("\n"): only documents with other breaks are split again."""
    counts = lines.counts()
    other = has_other_breaks(offsets, data)
    keep = np.repeat(~other, counts)
    last = lines.first[1:] - 1
    keep[last[lines.chars[last] == 0]] = False
    parts = [(np.repeat(np.arange(len(counts)), counts)[keep], lines, keep)]
    for d in np.flatnonzero(other):
        again = split_lines(offsets[d : d + 2], data, universal=True)
        parts.append((np.full(len(again.chars), d), again, np.ones(len(again.chars), np.bool_)))
    owner = np.concatenate([part[0] for part in parts])
    order = np.argsort(owner, kind="stable") if len(parts) > 1 else slice(None)
    first = np.zeros_like(lines.first)
    np.cumsum(np.bincount(owner, minlength=len(counts)), out=first[1:])
    names = [field.name for field in fields(lines) if field.name != "first"]
    columns = [np.concatenate([getattr(part, name)[kept] for _, part, kept in parts])[order] for name in names]
    return Lines(first, *columns)


@numba.njit(cache=True, nogil=True)
def _count_breaks(offsets: np.ndarray, data: np.ndarray, universal: bool) -> int:
    n = 0
    for i in range(offsets[0], offsets[-1]):
        byte = data[i]
        if byte < 32:
            n += byte == 10 or (universal and byte != 9)
        elif universal and byte >= 0x80:
            # U+0085 and U+2028/9 end in these bytes; counting a few too many costs only room.
            n += byte == 0x85 or byte == 0xA8 or byte == 0xA9
    return n


@numba.njit(cache=True, nogil=True)
def _split(
    offsets: np.ndarray,
    data: np.ndarray,
    universal: bool,
    first: np.ndarray,
    places: np.ndarray,
    small: np.ndarray,
    hashes: np.ndarray,
) -> int:
    b2 = HASH_BASE * HASH_BASE
    b3, b4 = b2 * HASH_BASE, b2 * b2
    n = 0
    for d in range(len(offsets) - 1):
        at, end = offsets[d], offsets[d + 1]
        while at < end or (at == end and not universal):  # split("\n") ends in a line, splitlines() need not
            start, stop = at, end
            raw, chars, last = np.uint64(0), 0, np.int64(-1)
            following = end + 1
            while at < end:
                if at + 4 <= end:
                    # Four characters at once, as long as they are printable ASCII.
                    p0, p1, p2, p3 = data[at], data[at + 1], data[at + 2], data[at + 3]
                    if (p0 | p1 | p2 | p3) < 128 and p0 >= 32 and p1 >= 32 and p2 >= 32 and p3 >= 32:
                        four = np.uint64(p0 + 1) * b3 + np.uint64(p1 + 1) * b2
                        raw = raw * b4 + four + np.uint64(p2 + 1) * HASH_BASE + np.uint64(p3 + 1)
                        chars += 4
                        last = np.int64(p3)
                        at += 4
                        continue
                point, step = np.int64(data[at]), 1
                if point >= 128:
                    point, step = decode(data, at, end)
                if point == 10 or (universal and (flags_of(point) & LINE_BREAK) != 0):
                    if universal and point == 13 and at + 1 < end and data[at + 1] == 10:
                        step = 2
                    stop, following = at, at + step
                    break
                raw = raw * HASH_BASE + np.uint64(point + 1)
                chars += 1
                last = point
                at += step
            at = following
            strip_start, lead, head = _first_letter(data, start, stop)
            strip_end, trail, tail = (stop, 0, np.int64(-1)) if head < 0 else _last_letter(data, strip_start, stop)
            left = right = both = raw
            if head < 0:
                strip_start = stop
                left = right = both = np.uint64(0)
            else:
                if lead:
                    left = _hash(data, strip_start, stop)
                if trail:
                    right = _hash(data, start, strip_end)
                both = left if trail == 0 else right if lead == 0 else _hash(data, strip_start, strip_end)
            places[0, n], places[1, n], places[2, n], places[3, n] = start, stop, strip_start, strip_end
            small[0, n], small[1, n], small[2, n] = chars, lead, trail
            small[3, n], small[4, n], small[5, n] = head, tail, last
            hashes[0, n], hashes[1, n], hashes[2, n], hashes[3, n] = raw, left, right, both
            n += 1
        first[d + 1] = n
    return n


@numba.njit(cache=True, nogil=True)
def _first_letter(data: np.ndarray, start: int, end: int) -> tuple[int, int, int]:
    """(offset, white space characters before it, code point) of the first character that is no white space."""
    at, lead = start, 0
    while at < end:
        point, step = decode(data, at, end)
        if not flags_of(point) & SPACE:
            return at, lead, np.int64(point)
        lead += 1
        at += step
    return end, lead, np.int64(-1)


@numba.njit(cache=True, nogil=True)
def _last_letter(data: np.ndarray, start: int, end: int) -> tuple[int, int, int]:
    """(offset behind, white space characters after it, code point) of the last character that is no white space."""
    at, trail = end, 0
    while at > start:
        place = at - 1
        low = max(start, at - 4)
        while place > low and (data[place] & 0xC0) == 0x80:
            place -= 1
        point, step = decode(data, place, at)
        if place + step != at:  # damaged: its last byte stands for itself
            point = np.int64(REPLACEMENT)
        if not flags_of(point) & SPACE:
            return at, trail, np.int64(point)
        trail += 1
        at = place
    return start, trail, np.int64(-1)


@numba.njit(cache=True, nogil=True)
def _hash(data: np.ndarray, start: int, end: int) -> int:
    value = np.uint64(0)
    at = start
    while at < end:
        point, step = np.int64(data[at]), 1
        if point >= 128:
            point, step = decode(data, at, end)
        value = value * HASH_BASE + np.uint64(point + 1)
        at += step
    return value


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs (parts of the stripped text between empty lines), as ranges [first[d], first[d + 1])."""

    first: np.ndarray
    chars: np.ndarray
    hash: np.ndarray


def split_paragraphs(lines: Lines, *, strip: bool = False) -> Paragraphs:
    """The parts of text.strip() between two or more line feeds; a document without text has one, empty.

    `strip` takes white space off each part, and leaves out those without anything else. `lines` are split with
    universal=False. Cost: one step per line, no pass over the bytes.
    """
    room = len(lines.hash) + len(lines.first)
    first = np.zeros(len(lines.first), np.int64)
    chars, hashes = np.empty(room, np.int64), np.empty(room, np.uint64)
    n = _paragraphs(
        lines.first, lines.chars, lines.lead, lines.trail, lines.head,
        lines.hash, lines.lstrip_hash, lines.rstrip_hash, lines.strip_hash, strip, first, chars, hashes,
    )  # fmt: skip
    return Paragraphs(first, chars[:n], hashes[:n])


@numba.njit(cache=True, nogil=True)
def _paragraphs(
    line_first: np.ndarray,
    line_chars: np.ndarray,
    lead: np.ndarray,
    trail: np.ndarray,
    head: np.ndarray,
    raw: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    both: np.ndarray,
    strip: bool,
    first: np.ndarray,
    chars: np.ndarray,
    hashes: np.ndarray,
) -> int:
    n = 0
    for d in range(len(line_first) - 1):
        if strip:
            at = line_first[d]
            while at < line_first[d + 1]:
                stop = at
                while stop < line_first[d + 1] and line_chars[stop] > 0:
                    stop += 1
                n += _stripped(at, stop, line_chars, lead, trail, head, raw, left, right, both, chars, hashes, n)
                at = stop + 1
            first[d + 1] = n
            continue
        low, high = line_first[d], line_first[d + 1]
        while low < high and head[low] < 0:
            low += 1
        while high > low and head[high - 1] < 0:
            high -= 1
        value, length, started = np.uint64(0), 0, False
        for i in range(low, high):
            if line_chars[i] == 0:
                if started:
                    chars[n], hashes[n] = length, value
                    n += 1
                    started = False
                continue
            size = np.int64(line_chars[i])
            if i == low:
                size -= lead[i]
            if i == high - 1:
                size -= trail[i]
            if i == low and i == high - 1:
                part = both[i]
            elif i == low:
                part = left[i]
            elif i == high - 1:
                part = right[i]
            else:
                part = raw[i]
            if started:
                value = value * HASH_BASE + np.uint64(11)  # the line feed between them
                value = value * power(size) + part
                length += size + 1
            else:
                value, length, started = part, size, True
        if started or low == high:
            chars[n], hashes[n] = length, value
            n += 1
        first[d + 1] = n
    return n


@numba.njit(cache=True, nogil=True)
def _stripped(
    low: int, high: int, line_chars: np.ndarray, lead: np.ndarray, trail: np.ndarray, head: np.ndarray,
    raw: np.ndarray, left: np.ndarray, right: np.ndarray, both: np.ndarray, chars: np.ndarray, hashes: np.ndarray,
    n: int,
) -> int:  # fmt: skip
    """Write the paragraph of lines [low, high) without white space around it as number `n`; 1, or 0 if it is empty."""
    while low < high and head[low] < 0:
        low += 1
    while high > low and head[high - 1] < 0:
        high -= 1
    if low == high:
        return 0
    if high - low == 1:
        chars[n], hashes[n] = line_chars[low] - lead[low] - trail[low], both[low]
        return 1
    value, length = left[low], np.int64(line_chars[low] - lead[low])
    for i in range(low + 1, high):
        size = np.int64(line_chars[i] - (trail[i] if i == high - 1 else 0))
        part = right[i] if i == high - 1 else raw[i]
        value = (value * HASH_BASE + np.uint64(11)) * power(size) + part
        length += size + 1
    chars[n], hashes[n] = length, value
    return 1


@numba.njit(cache=True, nogil=True)
def repeats(
    first: np.ndarray, hashes: np.ndarray, chars: np.ndarray, take: np.ndarray, first_too: bool = False
) -> np.ndarray:
    """(elements, repeated elements, their characters, all characters) of each document, int64 [documents, 4].

    An element is repeated when an equal one (by hash and length) came before it in its document; with `first_too`,
    also when one comes after it. Only elements with `take` count.
    """
    documents = len(first) - 1
    out = np.zeros((documents, 4), np.int64)
    most = 1
    for d in range(documents):
        most = max(most, first[d + 1] - first[d])
    size = 16
    while size < 2 * most:
        size *= 2
    keys, lengths, stamps = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.full(size, -1, np.int64)
    single = np.zeros(size, np.bool_)
    for d in range(documents):
        mask = 15
        while mask + 1 < 2 * (first[d + 1] - first[d]):
            mask = mask * 2 + 1
        for i in range(first[d], first[d + 1]):
            if not take[i]:
                continue
            out[d, 0] += 1
            out[d, 3] += chars[i]
            key = hashes[i]
            slot = np.int64((key * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)) & mask
            while stamps[slot] == d and not (keys[slot] == key and lengths[slot] == chars[i]):
                slot = (slot + 1) & mask
            if stamps[slot] == d:
                times = 2 if first_too and single[slot] else 1
                single[slot] = False
                out[d, 1] += times
                out[d, 2] += times * chars[i]
            else:
                stamps[slot], keys[slot], lengths[slot], single[slot] = d, key, chars[i], True
    return out


@numba.njit(cache=True, nogil=True)
def keep_lines(
    first: np.ndarray, starts: np.ndarray, ends: np.ndarray, data: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [documents + 1], bytes) of the documents with only the lines in `keep`, joined by line feeds."""
    room = np.int64(0)
    for i in range(first[0], first[-1]):
        if keep[i]:
            room += ends[i] - starts[i] + 1
    out, offsets = np.empty(room, np.uint8), np.zeros(len(first), np.int64)
    to = np.int64(0)
    for d in range(len(first) - 1):
        begin = True
        for i in range(first[d], first[d + 1]):
            if not keep[i]:
                continue
            if not begin:
                out[to] = 10
                to += 1
            begin = False
            for k in range(starts[i], ends[i]):
                out[to] = data[k]
                to += 1
        offsets[d + 1] = to
    return offsets, out[:to]
