"""The dolma variants measure what dolma's taggers gopher_v1 and c4_v2 measure: as stored, and as written here."""

import gzip
import json
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.datatrove_reference import text_hash
from texts import CHINESE, ENGLISH, ODD, batch_of, parity_texts, real_texts

from pipeline.filters.c4 import C4
from pipeline.filters.gopher_quality import ENGLISH_STOP_WORDS, GopherQuality
from pipeline.filters.gopher_repetition import GopherRepetition
from pipeline.step import Documents

GOLDEN = Path(__file__).parents[1] / "golden" / "dolma_filters.json.gz"


@pytest.fixture(scope="module")
def golden():
    """[(text, what the taggers gave)] for some 2,000 real documents."""
    stored = json.loads(gzip.decompress(GOLDEN.read_bytes()))["documents"]
    found = {text: stored[key] for text in parity_texts() if (key := text_hash(text)) in stored}
    if len(found) < 2000:
        pytest.skip("needs the real documents in ../shared/data")
    return found


def test_gopher_scores_are_those_stored(golden):
    docs = Documents(batch_of(list(golden)))
    scores = GopherQuality(variant="dolma").scores(docs) | GopherRepetition(variant="dolma").scores(docs)
    names = set().union(*(row["gopher"] for row in golden.values()))
    assert len(names) == 18
    for name in names:
        # The taggers give 0 where there is nothing to divide by, and no number where there is no n-gram.
        expected = [row["gopher"].get(name, 0) for row in golden.values()]
        assert np.nan_to_num(scores[name]) == pytest.approx(np.array(expected), abs=1e-9), name


def test_c4_flags_lines_and_texts_are_those_stored(golden):
    step, docs = C4(variant="dolma"), Documents(batch_of(list(golden)))
    scores = step.scores(docs)
    flags = np.array([row["c4"]["flags"] for row in golden.values()])
    found = np.array([scores[name] for name in ("lorem_ipsum", "curly_bracket", "javascript")]).T
    assert np.array_equal(found, flags)
    assert scores["lines_dropped"].tolist() == [row["c4"]["dropped"] for row in golden.values()]
    after = [text_hash(text) for text in step.columns(docs)["text"].to_pylist()]
    assert after == [row["c4"]["text"] for row in golden.values()]


def share(part, whole):
    return part / whole if whole else np.nan


def plain_quality(text):
    words, lines = text.split(), text.split("\n")
    return {
        "n_words": len(words),
        "mean_word_length": median(map(len, words)) if words else np.nan,
        "hash_ratio": share(sum("#" in w or "…" in w for w in words), len(words)),
        "bullet_lines": share(sum(line.startswith(("*", "-")) for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.endswith("…") for line in lines), len(lines)),
        "alpha_words": share(sum(any(c.isalpha() for c in w) for w in words), len(words)),
        "stop_words": sum(w in ENGLISH_STOP_WORDS for w in words),
    }


def plain_repetition(text):
    words, lines = text.split(), Counter(text.split("\n"))
    chars = sum(map(len, words))
    again = {line: count for line, count in lines.items() if count > 1}
    out = {
        "dup_line_frac": share(sum(again.values()), sum(lines.values())),
        "dup_line_char_frac": share(sum(len(line) * count for line, count in again.items()), chars),
    }
    for n in range(2, 11):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        sizes = {gram: sum(map(len, gram)) * count for gram, count in grams.items()}
        if n < 5:
            best = grams.most_common(1)[0][0] if grams else ()
            out[f"top_{n}_gram"] = share(sizes.get(best, 0), chars)
        else:
            out[f"dup_{n}_gram"] = share(sum(sizes[g] for g, c in grams.items() if c > 1), sum(sizes.values()))
    return out


def check(texts):
    docs = Documents(batch_of(texts))
    for step, plain in (
        (GopherQuality(variant="dolma"), plain_quality),
        (GopherRepetition(variant="dolma"), plain_repetition),
    ):
        scores = step.scores(docs)
        for row, text in enumerate(texts):
            for name, value in plain(text).items():
                assert scores[name][row] == pytest.approx(value, rel=1e-12, nan_ok=True), (name, text[:60])


def test_real_documents_measure_the_same():
    valid = [text for text in ODD if text.encode("utf-8", "replace").decode() == text]
    check([*real_texts(120), *valid, ENGLISH, CHINESE])


@given(st.lists(st.text(st.sampled_from("ab #…-*\n.字"), max_size=40), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_text_measures_the_same(texts):
    check(texts)
