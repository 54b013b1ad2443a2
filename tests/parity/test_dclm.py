"""The dclm variants measure what DataComp-LM's filters measure, as stored for real documents and as written here."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from parity import dclm_reference
from parity.datatrove_reference import text_hash
from texts import CHINESE, ENGLISH, ODD, batch_of, judge, parity_texts

from pipeline.filters.gopher_quality import GopherQuality
from pipeline.filters.gopher_repetition import GopherRepetition
from pipeline.kernels.word_breaks import split_words
from pipeline.step import Documents, string_buffers

GOLDEN = Path(__file__).parents[1] / "golden" / "dolma_filters.json.gz"
POOL = "ab1 .,':\"_\u0301\u200d\u05d0\u05d1ア字カ\r\n\t\U0001f1e6\U0001f1e7😀👩;/-\u00ad\u3000é٣"


@pytest.fixture(scope="module")
def golden():
    stored = json.loads(gzip.decompress(GOLDEN.read_bytes()))["documents"]
    found = {text: stored[key]["dclm"] for text in parity_texts() if "dclm" in stored.get(key := text_hash(text), {})}
    if len(found) < 400:
        pytest.skip("needs the real documents in ../shared/data")
    return found


def check(texts, expected):
    docs = Documents(batch_of(texts))
    scores = GopherQuality(variant="dclm").scores(docs) | GopherRepetition(variant="dclm").scores(docs)
    for row, (text, values) in enumerate(zip(texts, expected, strict=True)):
        for name, value in values.items():
            value = np.nan if value is None else value
            assert scores[name][row] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, text[:60])


def test_scores_of_real_documents_are_those_stored(golden):
    check(list(golden), golden.values())


def test_quality_scores_of_odd_documents_are_those_of_the_plain_filters():
    rng = random.Random(0)
    texts = [text for text in ODD if text.encode("utf-8", "replace").decode() == text]
    pieces = [*POOL, ". . .", "...", "…", "#", "The", "of", "\n\n", "●", "•", "*", "\0", "\x0b", "\x1c", "\x85"]
    texts += ["".join(rng.choices(pieces, k=rng.randint(1, 30))) for _ in range(500)]
    check(texts, [dclm_reference.quality(text) for text in texts])


def test_words_are_those_between_unicode_s_boundaries():
    examples = {
        "The (\u201cbrown\u201d) fox can\u2019t do 32.3 feet, right?": "The brown fox can\u2019t do 32.3 feet right",
        "a.b a. .b 1,000 1, x_y 3a A3": "a.b a b 1,000 1 x_y 3a A3",
        "使用 Python编程": "使 用 Python 编 程",
        "カタカナ ひら": "カタカナ ひ ら",
        "e\u0301t\u00e9 o\u0308": "e\u0301t\u00e9 o\u0308",
    }
    assert {text: " ".join(words_of(text)) for text in examples} == examples


def test_words_are_those_of_uniseg():
    rng = random.Random(1)
    uniseg = pytest.importorskip("uniseg.wordbreak")
    for text in [*("".join(rng.choices(POOL, k=rng.randint(1, 30))) for _ in range(500)), ENGLISH, CHINESE]:
        assert words_of(text) == [word for word in uniseg.words(text) if word[0].isalnum()]


def words_of(text):
    offsets, data = string_buffers(batch_of([text]).column("text"))
    found = split_words(offsets, data)
    spans = zip(found.start.tolist(), found.size.tolist(), strict=True)
    return [data[start : start + size].tobytes().decode() for start, size in spans]


def test_an_empty_document_goes():
    assert judge(GopherRepetition(variant="dclm"), "", " \n", "a word").reason.tolist() == ["empty", "empty", None]
