"""Shingles and signatures against their slow twins, and against datasketch bit for bit."""

from __future__ import annotations

import json
import lzma
import re
import unicodedata

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels import minhash
from pipeline.step import string_buffers


def units(text: str) -> list[str]:
    """The slow twin of the unit rules, from Unicode's names instead of ranges of code points."""
    out, word = [], ""
    for letter in text:
        name = unicodedata.name(letter, "")
        inside = re.match(r"\w", letter) or unicodedata.category(letter)[0] == "M"
        alone = inside and re.match(r"CJK|THAI|LAO|KHMER|MYANMAR|HIRAGANA|KATAKANA|TIBETAN|IDEOGRAPHIC ITER", name)
        if not inside or alone:
            out, word = ([*out, word] if word else out), ""
        if alone:
            out.append(letter)
        elif inside:
            word += letter.lower()[0]
    return [*out, word] if word else out


def shingles(text: str, n: int) -> list[bytes]:
    words = units(text)
    return [" ".join(words[i : i + n]).encode() for i in range(len(words) - n + 1)]


def by_datasketch(text: str, n: int, count: int) -> np.ndarray:
    sketch = datasketch.MinHash(num_perm=count, seed=1, scheme="affine32", hashfunc=minhash.shingle_hash)
    sketch.update_batch(shingles(text, n))
    return sketch.hashvalues


TEXT = st.text(alphabet="aB _9é.,\n天の地ไทยкириهلاनीति—𠀀😀", max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(1, 6))
def test_signatures_equal_datasketch_on_any_text(texts, n):
    signature, count, _ = minhash.signatures(*string_buffers(pa.array(texts, pa.large_string())), ngram=n, count=16)
    for row, text in enumerate(texts):
        assert np.array_equal(signature[row], by_datasketch(text, n, 16))
        assert count[row] == (len(shingles(text, n)) if units(text) else -1)


def test_signatures_equal_datasketch_on_real_articles(data):
    lines = (data / "dedup" / "minhash_articles" / "articles_1000.train").read_text().splitlines()
    signature, _, _ = minhash.signatures(*string_buffers(pa.array(lines, pa.large_string())), ngram=5, count=112)
    for row, text in enumerate(lines):
        assert np.array_equal(signature[row], by_datasketch(text, 5, 112))


def test_signatures_equal_datasketch_on_ten_thousand_real_documents(data):
    texts: list[str] = []
    for file in sorted((data / "dedup" / "debian_installation_guide").glob("*.jsonl.xz")):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            pages = [json.loads(line)["text"] for line in lines]
        texts += [part for page in pages for part in page.split("\n\n") if part.strip()]
    texts = list(dict.fromkeys(texts))[:10_000]
    assert len(texts) == 10_000
    signature, _, _ = minhash.signatures(*string_buffers(pa.array(texts, pa.large_string())), ngram=5, count=112)
    for row, text in enumerate(texts):
        assert np.array_equal(signature[row], by_datasketch(text, 5, 112))


@given(st.lists(TEXT, min_size=2, max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_neighbours_in_the_batch_and_slicing_change_nothing(texts, data):
    array = pa.array(texts, pa.large_string())
    start = data.draw(st.integers(0, len(texts) - 1))
    whole = minhash.signatures(*string_buffers(array), ngram=3, count=8)
    part = minhash.signatures(*string_buffers(array.slice(start)), ngram=3, count=8)
    for before, after in zip(whole, part, strict=True):
        assert np.array_equal(before[start:], after)


@given(TEXT, TEXT, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_shingle_sets_give_the_exact_jaccard(x, y, n):
    array = pa.array([x, y], pa.large_string())
    offsets, values = minhash.shingle_sets(*string_buffers(array), np.arange(2, dtype=np.uint64), ngram=n)
    mine, other = values[: offsets[1]], values[offsets[1] :]
    a, b = set(shingles(x, n)), set(shingles(y, n))
    if a and b:
        assert (len(mine), len(other)) == (len(a), len(b))
        assert minhash.jaccard(mine, other) == pytest.approx(len(a & b) / len(a | b))


def test_characters_makes_every_letter_a_unit():
    array = pa.array(["ab cd", "a b c d"], pa.large_string())
    signature, count, _ = minhash.signatures(*string_buffers(array), ngram=2, count=4, characters=True)
    assert count.tolist() == [3, 3]
    assert np.array_equal(signature[0], signature[1])


def test_words_of_a_short_document_are_all_in_its_hash():
    texts = ["a b", "ab", "b a", "a", "a b c", "A, b!"]
    _, count, whole = minhash.signatures(*string_buffers(pa.array(texts, pa.large_string())), ngram=5, count=4)
    assert count.tolist() == [0] * 6
    assert whole[0] == whole[5]
    assert len(set(whole.tolist())) == 5


def test_band_keys_are_equal_exactly_when_a_band_and_its_salt_are():
    signature = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [3, 4, 1, 2], [1, 2, 3, 4]], np.uint32)
    keys = minhash.band_keys(signature, 2, 2, np.array([0, 0, 0, 7], np.uint64))
    assert keys[0, 0] == keys[1, 0]
    assert len(set(keys.ravel().tolist())) == 7
