import re
from collections import Counter

import numpy as np
import pytest
from corpus_steps import run_corpus_step
from texts import CHINESE, DAMAGED, ENGLISH, ODD, batch_of, real_texts

from pipeline.filters.misspelling import Misspelling


def run(folder, step, texts, languages=None, **how):
    rows, reasons, _ = run_corpus_step(folder, step, batch_of(texts, languages), **how)
    return reasons, rows.column("rare_word_share").to_numpy()


def scrambled(text, seed=0):
    rng = np.random.default_rng(seed)
    return re.sub(
        r"[a-z]{4,}|[\u4e00-\u9fff]",
        lambda m: (
            "".join(rng.permutation(list(m[0] + "qx"))) if m[0].isascii() else chr(0x3400 + int(rng.integers(6000)))
        ),
        text,
    )


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_garbled_words_go_and_the_same_words_spelt_right_stay(tmp_path, text):
    texts = [text + f" {i}" for i in range(5)] + [scrambled(text)]
    reasons, share = run(tmp_path, Misspelling(), texts)
    assert reasons == [None] * 5 + ["misspelt"]
    assert share[:5].max() < 0.05
    assert share[5] > 0.5


@pytest.mark.parametrize("word", ["zqx", "㐀"])
@pytest.mark.parametrize(("rare", "reason"), [(29, None), (30, None), (31, "misspelt")])
def test_largest_share_of_rare_words(tmp_path, word, rare, reason):
    common = "good" if word.isascii() else "好"
    text = " ".join([word] * rare + [common] * (100 - rare))
    reasons, share = run(tmp_path, Misspelling(max_rare_share=0.3), [text, " ".join([common] * 50)])
    assert share[0] == rare / 100
    assert reasons[0] == reason


@pytest.mark.parametrize(("others", "share"), [(2, 0.5), (3, 0.0), (4, 0.0)])
def test_a_word_is_rare_by_its_count_in_the_rest_of_the_corpus(tmp_path, others, share):
    text = " ".join(["vellum"] * 20 + ["good"] * 20)
    texts = [text, "good " * 30, *["vellum good and more words"] * others]
    assert run(tmp_path, Misspelling(min_count=3), texts)[1][0] == share


@pytest.mark.parametrize(("words", "judged"), [(19, False), (20, True), (21, True)])
def test_short_documents_numbers_and_short_words_are_not_judged(tmp_path, words, judged):
    share = run(tmp_path, Misspelling(min_words=20), [" ".join(["zz qq 12345 --"] * 30 + ["zqxj"] * words)])[1]
    assert (not np.isnan(share[0])) == judged


def test_each_language_has_its_own_words(tmp_path):
    texts = ["gift poison gift poison " * 10] + ["gift present kind word " * 10] * 5
    mixed = run(tmp_path / "a", Misspelling(), texts)[1]
    apart = run(tmp_path / "b", Misspelling(by="language"), texts, ["de", "en", "en", "en", "en", "en"])[1]
    assert mixed[0] == 0.5
    assert apart[0] == 1.0


def test_the_share_is_that_of_a_plain_count_and_partitions_change_nothing(tmp_path):
    texts = [*real_texts(60), *ODD, *DAMAGED]
    one = run(tmp_path / "one", Misspelling(), texts, partitions=1)
    four = run(tmp_path / "four", Misspelling(), texts, partitions=4, batch_documents=7)
    assert one[0] == four[0]
    assert np.array_equal(one[1], four[1], equal_nan=True)
    english = [text for text in texts if text.isascii() and len(text) > 100][:3]
    words = [
        ["".join(c for c in w.lower() if c.isalnum()) for w in t.split() if len(w) >= 3 and any(map(str.isalpha, w))]
        for t in english
    ]
    corpus = Counter(w for doc in words for w in doc)
    found = run(tmp_path / "plain", Misspelling(min_words=1, bits=24), english)[1]
    for doc, share in zip(words, found, strict=True):
        own = Counter(doc)
        assert share == pytest.approx(sum(corpus[w] - own[w] < 3 for w in doc) / len(doc), abs=1e-12)
