# mypy: disable-error-code="assignment,arg-type,return-value"
# Inside kernels a number is now an int, now a NumPy scalar; numba types them itself.
"""Finds the places in a batch where personal data could be, so that exact patterns run there and nowhere else."""

from __future__ import annotations

import numba
import numpy as np

AT, NUMBER, DOTTED, COLONS, IBAN, KEY, DASHES = range(7)
"""What was seen: an @ between words, 7 digits or more with single separators, four dotted numbers, hexadecimal groups
with colons, two capitals and two digits, a known prefix of secret keys, five dashes before BEGIN."""

KEY_PREFIXES = (b"AKIA", b"ASIA", b"ghp_", b"gho_", b"ghs_", b"ghu_", b"gith", b"sk-", b"xox", b"AIza", b"glpa", b"hf_",
                b"npm_", b"pypi", b"sk_l", b"rk_l", b"LTAI", b"AKID", b"eyJ")  # fmt: skip
_PREFIXES = np.zeros((len(KEY_PREFIXES), 4), np.uint8)
for _k, _prefix in enumerate(KEY_PREFIXES):
    _PREFIXES[_k, : len(_prefix)] = np.frombuffer(_prefix, np.uint8)
_PREFIX_SIZES = np.array([len(prefix) for prefix in KEY_PREFIXES], np.int64)

_DIGIT, _UPPER, _LOWER, _HEX = 1, 2, 4, 8
_CLASS = np.zeros(256, np.uint8)
for _byte in range(128):
    _char = chr(_byte)
    _CLASS[_byte] = _DIGIT * _char.isdigit() | _UPPER * _char.isupper() | _LOWER * _char.islower()
    _CLASS[_byte] |= _HEX * (_char in "0123456789abcdefABCDEF")
_KEY_STARTS = np.zeros(256, np.bool_)
for _prefix in KEY_PREFIXES:
    _KEY_STARTS[_prefix[0]] = True


@numba.njit(cache=True, nogil=True)
def candidates(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """int64 [found, 3]: (document, byte offset, kind) in order of place. One pass over the bytes."""
    out = np.empty((1024, 3), np.int64)
    n = 0
    for d in range(len(offsets) - 1):
        begin, end = offsets[d], offsets[d + 1]
        at = begin
        before = np.uint8(0)  # class of the byte before
        while at < end:
            byte = data[at]
            kind = _CLASS[byte]
            found = -1
            step = 1
            if kind & _DIGIT:
                if not before:
                    found, step = _number(data, at, end)
            elif kind & _UPPER and not before and at + 14 < end and _is_iban(data, at):
                found = IBAN
            elif byte == 64:
                if before and at + 3 < end and _CLASS[data[at + 1]]:
                    found = AT
            elif byte == 58:
                if at + 2 < end and _has_colons(data, begin, at, end):
                    found = COLONS
                    while at + step < end and (data[at + step] == 58 or _CLASS[data[at + step]] & _HEX):
                        step += 1
            elif byte == 45 and at + 10 < end and data[at + 5] == 66 and data[at + 4] == 45 and data[at + 9] == 78:
                found = DASHES
            if found < 0 and not before and _KEY_STARTS[byte] and at + 12 < end:
                for k in range(len(_PREFIX_SIZES)):
                    size = _PREFIX_SIZES[k]
                    same = True
                    for i in range(size):
                        if data[at + i] != _PREFIXES[k, i]:
                            same = False
                            break
                    if same:
                        found = KEY
                        break
            if found >= 0:
                if n == len(out):
                    larger = np.empty((2 * n, 3), np.int64)
                    larger[:n] = out
                    out = larger
                out[n, 0], out[n, 1], out[n, 2] = d, at, found
                n += 1
            at += step
            before = _CLASS[data[at - 1]]
    return out[:n]


@numba.njit(cache=True, nogil=True)
def _number(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """(NUMBER, DOTTED or -1, bytes of its first group of digits)."""
    digits, dots, k = 0, 0, at
    last, first = at, np.int64(0)
    while k < end:
        byte = data[k]
        if _CLASS[byte] & _DIGIT:
            digits += 1
            last = k
        else:
            if first == 0:
                first = k - at
            if byte == 46:
                dots += 1
                if k - last > 1:
                    break
            elif byte == 32 or byte == 45 or byte == 40 or byte == 41:
                if k - last > 2:
                    break
            else:
                break
        if digits > 32:
            break
        k += 1
    if first == 0:
        first = k - at
    # The next group of digits may be where something starts: only this one is skipped.
    if digits >= 7:
        return NUMBER, first
    return (DOTTED if dots >= 3 and digits >= 4 else -1), first


@numba.njit(cache=True, nogil=True, inline="always")
def _is_iban(data: np.ndarray, at: int) -> bool:
    return (
        (_CLASS[data[at + 1]] & _UPPER) != 0
        and (_CLASS[data[at + 2]] & _DIGIT) != 0
        and (_CLASS[data[at + 3]] & _DIGIT) != 0
    )


@numba.njit(cache=True, nogil=True)
def _has_colons(data: np.ndarray, begin: int, at: int, end: int) -> bool:
    """Whether the first colon of a run of hexadecimal groups is here, with a double colon or seven in all."""
    low = at
    while low > begin and at - low < 5 and _CLASS[data[low - 1]] & _HEX:
        low -= 1
    if low > begin and data[low - 1] == 58:
        return False  # not the first one
    colons, double, k = 0, False, at
    while k < end and k - at < 40 and (data[k] == 58 or _CLASS[data[k]] & _HEX):
        if data[k] == 58:
            colons += 1
            double = double or (k + 1 < end and data[k + 1] == 58)
        k += 1
    return colons >= 7 or (double and colons >= 2)
