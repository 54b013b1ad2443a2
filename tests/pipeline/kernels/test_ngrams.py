from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import batch_of

from pipeline.kernels import ngrams
from pipeline.kernels.words import split_words
from pipeline.step import Documents

DOCS = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "c", "字", "longer-word"]), max_size=40), max_size=4
)


def words_of(docs):
    return split_words(*Documents(batch_of([" ".join(doc) for doc in docs])).text_buffers(), by_script=False)


def marked(words, grams, n):
    """Characters of the words that lie in one of `grams`, each word once."""
    inside = set()
    for i in range(len(words) - n + 1):
        if tuple(words[i : i + n]) in grams:
            inside |= set(range(i, i + n))
    return sum(len(words[i]) for i in inside)


def slow_top(words, n, mode):
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if not counts:
        return 0
    if mode in (ngrams.TOP_JOINED, ngrams.TOP_ONCE):
        gram, count = counts.most_common(1)[0]
        return len((" " if mode == ngrams.TOP_JOINED else "").join(gram)) * count
    most = max(counts.values())
    if most < 2:
        return 0
    if mode == ngrams.TOP_LONGEST:
        return most * max(len("".join(g)) for g, c in counts.items() if c == most)
    if mode == ngrams.TOP_PRODUCT:
        gram, count = counts.most_common(1)[0]
        return len("".join(gram)) * count
    longest = max(len("".join(g)) for g, c in counts.items() if c == most)
    gram = next(g for g, c in counts.items() if c == most and len("".join(g)) == longest)
    return marked(words, {gram}, n)


def slow_greedy(words, n):
    seen, total, i = set(), 0, 0
    while i < len(words) - n + 1:
        gram = "".join(words[i : i + n])
        if gram in seen:
            total += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return total


@given(DOCS, st.sampled_from(range(5)))
@settings(max_examples=150, deadline=None)
def test_repeated_ngrams_are_those_of_the_plain_twin(docs, mode):
    found = words_of(docs)
    got = ngrams.repeated_ngrams(found.first, found.hash, found.chars, 4, 10, mode)
    for row, words in zip(got.tolist(), docs, strict=True):
        assert row[:3] == [slow_top(words, n, mode) for n in (2, 3, 4)]
        for n in range(5, 11):
            counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            assert row[n - 2] == marked(words, {g for g, c in counts.items() if c > 1}, n)


@given(DOCS)
@settings(max_examples=150, deadline=None)
def test_greedy_ngrams_are_those_of_the_plain_twin(docs):
    found = words_of(docs)
    got = ngrams.greedy_ngrams(found.first, found.hash, found.chars, 2, 10)
    assert got.tolist() == [[slow_greedy(words, n) for n in range(2, 11)] for words in docs]


@pytest.mark.parametrize("count", [8, 16, 17, 64, 1000])
def test_tables_hold_documents_of_every_size(count):
    found = words_of([[f"w{i}" for i in range(count)], ["x"]])
    assert not ngrams.repeated_ngrams(found.first, found.hash, found.chars, 4, 10, ngrams.TOP_CONTAINED).any()
    assert not ngrams.greedy_ngrams(found.first, found.hash, found.chars, 5, 10).any()


def test_a_hundred_repeats_of_a_sentence_are_all_repetition():
    sentence = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    found = words_of([sentence * 100])
    got = ngrams.repeated_ngrams(found.first, found.hash, found.chars, 4, 10, ngrams.TOP_CONTAINED)
    assert np.all(got[0, 3:] == sum(map(len, sentence)) * 100)
