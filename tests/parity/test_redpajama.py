"""The redpajama variants measure RedPajama-V2's quality signals, written down plainly here."""

import re
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import CHINESE, ENGLISH, ODD, batch_of, real_texts

from pipeline.filters.gopher_quality import GopherQuality
from pipeline.filters.gopher_repetition import GopherRepetition
from pipeline.step import Documents

BULLETS = ("\u2022", "\u2023", "\u25b6", "\u25c0", "\u25e6", "\u25a0", "\u25a1", "\u25aa", "\u25ab", "\u2013")


def share(part, whole):
    return part / whole if whole else np.nan


def normal_words(text):
    lower = text.translate(str.maketrans("", "", string.punctuation)).lower()
    return unicodedata.normalize("NFD", lower).replace("ς", "σ").split()


def plain(text):
    words, raw = normal_words(text), re.findall(r"\w+|[^\w\s]+", text)
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    chars = sum(map(len, words))
    out = {
        "n_words": len(words),
        "mean_word_length": share(chars, len(words)),
        "hash_ratio": share(sum(text.count(sign) for sign in ("#", "...", "…")), len(raw)),
        "bullet_lines": share(sum(line.lstrip().startswith(BULLETS) for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)),
        "alpha_words": share(sum(bool(re.search("[a-zA-Z]", word)) for word in raw), len(raw)),
    }
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n < 5:
            ((best, count),) = counts.most_common(1) or [((), 0)]
            out[f"top_{n}_gram"] = share(sum(map(len, best)) * count if count > 1 else 0, chars)
        else:
            marked = {k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(i, i + n)}
            out[f"dup_{n}_gram"] = share(sum(len(words[k]) for k in marked), chars)
    return out


def check(texts):
    docs = Documents(batch_of(texts))
    scores = GopherQuality(variant="redpajama").scores(docs) | GopherRepetition(variant="redpajama").scores(docs)
    for row, text in enumerate(texts):
        for name, value in plain(text).items():
            assert scores[name][row] == pytest.approx(value, rel=1e-12, nan_ok=True), (name, text[:60])


def test_real_documents_measure_the_same():
    valid = [text for text in ODD if text.encode("utf-8", "replace").decode() == text]
    check([*real_texts(150), *valid, ENGLISH, CHINESE, "한국어 텍스트 한국어 텍스트", "Ünïcödé e\u0301 é ΟΔΟΣ οδος"])


@given(st.lists(st.text(st.sampled_from("ab #.…-•\n_9'字éÉ한Σς"), max_size=40), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_text_measures_the_same(texts):
    check(texts)
