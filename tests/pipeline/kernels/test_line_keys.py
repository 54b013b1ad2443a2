"""Keys of lines against CCNet's normal form in plain Python."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels import line_keys as lines
from pipeline.step import string_buffers

REMOVED = re.compile(
    "[，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►" + "".join(map(chr, [*range(32), *range(127, 160)])) + "]"
)
TEXT = st.text(alphabet="aAbÉé09٣ .,\n\t\u3000…—天İ\u0301𠀀１\x85\x1c", max_size=30)


def ccnet(line: str) -> str:
    """The slow twin. A letter whose lower case is two letters counts as the first of them."""
    line = "".join("0" if unicodedata.category(c) == "Nd" and c != "１" else c.lower()[0] for c in line.strip())
    return REMOVED.sub("", line)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6), st.sampled_from(["ccnet", "raw"]))
def test_keys_are_equal_exactly_when_the_normal_forms_are(texts, normalise):
    array = pa.array(texts, pa.large_string())
    keys, _, offsets = lines.line_keys(
        *string_buffers(array), normalise=normalise, salt=np.zeros(len(texts), np.uint64)
    )
    forms = [[ccnet(x) if normalise == "ccnet" else x.strip() for x in text.split("\n")] for text in texts]
    assert np.diff(offsets).tolist() == [len(of_text) for of_text in forms]
    flat = [form for of_text in forms for form in of_text]
    known: dict[str, int] = {"": 0}
    for key, form in zip(keys.tolist(), flat, strict=True):
        assert known.setdefault(form, key) == key
    assert len(set(known.values())) == len(known)


@given(st.lists(TEXT, min_size=2, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_slices_and_salts(texts, data):
    array = pa.array(texts, pa.large_string())
    salt = np.arange(len(texts), dtype=np.uint64)
    keys, _, offsets = lines.line_keys(*string_buffers(array), normalise="raw", salt=salt)
    start = data.draw(st.integers(0, len(texts) - 1))
    part, _, _ = lines.line_keys(*string_buffers(array.slice(start)), normalise="raw", salt=salt[start:])
    assert np.array_equal(part, keys[offsets[start] :])
    other, _, _ = lines.line_keys(*string_buffers(array), normalise="raw", salt=salt + np.uint64(99))
    assert not np.any((other == keys) & (keys != 0))


def test_combine_sums_counts_and_keeps_the_first_place():
    keys = np.array([1, 1, 1, 5], np.uint64)
    counts = np.array([1, 2, 3, 4], np.uint32)
    address, line = np.array([7, 6, 6, 1], np.uint64), np.array([0, 2, 1, 0], np.uint32)
    assert lines.combine(keys, counts, address, line) == 2
    assert (keys[:2].tolist(), counts[:2].tolist()) == ([1, 5], [6, 4])
    assert (address[:2].tolist(), line[:2].tolist()) == ([6, 1], [1, 0])


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.3]), st.sampled_from([0.02, 0.5, 0.95]))
@settings(max_examples=40, deadline=None)
def test_long_texts_of_short_and_long_lines(seed, other, breaks):
    """More than the pieces in which newlines are looked for, at the end of the data and before it."""
    chance = random.Random(seed)
    letters = "AbcZ09 .~" if not other else "AbcZ09 .~\té…\u3000\x7f"
    lines_of = ["".join(chance.choices(letters, k=chance.choice([0, 1, 7, 8, 9, 15, 16, 17, 40]))) for _ in range(50)]
    text = "\n".join(chance.choices(lines_of, k=round(4000 * breaks)) + ["x" * 70_000] * (seed % 3))
    array = pa.array([text, "", text], pa.large_string())
    known: dict[str, int] = {"": 0}
    for normalise in ("raw", "ccnet"):
        keys, stops, offsets = lines.line_keys(*string_buffers(array), normalise=normalise, salt=np.zeros(3, np.uint64))
        forms = [ccnet(x) if normalise == "ccnet" else x.strip() for x in text.split("\n")]
        assert offsets.tolist() == [0, len(forms), len(forms) + 1, 2 * len(forms) + 1]
        assert keys.tolist() == [*keys[: len(forms)].tolist(), 0, *keys[: len(forms)].tolist()]
        known = {"": 0}
        assert all(known.setdefault(form, key) == key for form, key in zip(forms, keys.tolist(), strict=False))
        assert len(set(known.values())) == len(known)
        raw = text.encode()
        assert stops[: len(forms)].tolist() == [*(i for i, byte in enumerate(raw) if byte == 10), len(raw)]
