"""Modified Kneser-Ney: against a plain twin, and as KenLM reads it."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from texts import CHINESE, ENGLISH, real_texts

from pipeline.kernels.kneser_ney import BEGIN, END, UNKNOWN, train

SENTENCES = [s.split() for s in ["a b a b c", "a b c a", "b a", "c", "a a a b a b c d", "d a b", ""]]


def plain(sentences, order):
    """log10 probability of a word behind a context, straight from the definition."""
    raw = [Counter() for _ in range(order + 1)]
    for sentence in sentences:
        words = [BEGIN, *sentence, END]
        for n in range(1, order + 1):
            raw[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    counts = {order: raw[order]}
    for n in range(1, order):
        counts[n] = {g: raw[n][g] if g[0] == BEGIN else sum(h[1:] == g for h in raw[n + 1]) for g in raw[n]}
    counts[1][(BEGIN,)] = 0
    tables, discounts = {}, {}
    for n in counts:
        seen = Counter(counts[n].values())
        t = [seen[k] for k in range(5)]
        if all(t[1:]):
            y = t[1] / (t[1] + 2 * t[2])
            discounts[n] = [0, *(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))]
        else:
            discounts[n] = [0, 0.5, 1.0, 1.5]
        tables[n] = defaultdict(dict)
        for gram, count in counts[n].items():
            tables[n][gram[:-1]][gram[-1]] = count
    size = len(raw[1]) + 1 - 1  # with the unknown word, without the mark of the beginning

    def probability(context, word):
        n = len(context) + 1
        below = probability(context[1:], word) if context else 1 / size
        row = tables[n].get(context)
        if not row or not sum(row.values()):
            return below
        total, take = sum(row.values()), lambda c: discounts[n][min(c, 3)]
        count = row.get(word, 0)
        return (count - take(count)) / total + sum(map(take, row.values())) / total * below

    return probability, [*sorted(word for (word,) in raw[1] if word != BEGIN), UNKNOWN]


def kenlm_model(tmp_path, model, name="model.arpa"):
    kenlm = pytest.importorskip("kenlm")
    (tmp_path / name).write_text("\n".join(model.arpa()), encoding="utf-8")
    return kenlm.Model(str(tmp_path / name))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_are_those_of_the_definition(tmp_path, order):
    model = train(SENTENCES, order)
    probability, _ = plain(SENTENCES, order)
    read = kenlm_model(tmp_path, model)
    for sentence in [*SENTENCES, ["a", "zebra", "b"], ["d", "d", "c", "b", "a"]]:
        words = [BEGIN, *(w if w in "abcd" else UNKNOWN for w in sentence), END]
        expected = [
            math.log10(probability(tuple(words[max(0, i - order + 1) : i]), words[i])) for i in range(1, len(words))
        ]
        found = [score for score, _, _ in read.full_scores(" ".join(sentence))]
        assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("prune", [0, 1])
def test_the_words_behind_any_context_have_probability_one(tmp_path, prune):
    kenlm = pytest.importorskip("kenlm")
    sentences = [line.split() for text in (ENGLISH, CHINESE) for line in text.replace("，", " ").split("。")]
    sentences += [sentence[:12] for sentence in sentences]
    model = train(sentences, 4, prune)
    read = kenlm_model(tmp_path, model)
    words = [word for word in model.words if word != BEGIN]
    for context in ([], ["The"], ["The", "history"], ["of", "the", "valley"], ["nothing", "of"]):
        state, after = kenlm.State(), kenlm.State()
        read.NullContextWrite(state)
        for word in context:
            read.BaseScore(state, word, after)
            state, after = after, state
        total = sum(10 ** read.BaseScore(state, word, kenlm.State()) for word in words)
        assert total == pytest.approx(1, abs=1e-5)


def test_pruning_leaves_out_rare_ngrams_of_three_words_and_more():
    sentences = [["x", "y", "z"]] * 3 + [["x", "y", "w"]]
    model = train(sentences, 3, prune=1)
    grams = [[model.words[w] for w in model.flat[at : at + 3]] for at in model.orders[2].at[model.orders[2].kept]]
    assert sorted(grams) == [[BEGIN, "x", "y"], ["x", "y", "z"], ["y", "z", END]]
    assert model.orders[1].kept.all()


def test_text_like_the_training_text_is_less_surprising(tmp_path):
    texts = [text for text in real_texts(900) if sum(map(str.isascii, text)) > 0.99 * len(text)]
    sentences = [line.lower().split() for text in texts[40:] for line in text.split("\n") if line.strip()]
    read = kenlm_model(tmp_path, train(sentences, 5))
    held_out = " ".join(" ".join(texts[:20]).lower().split()[:2000])
    shuffled = " ".join(np.random.default_rng(0).permutation(held_out.split()))
    assert read.perplexity(held_out) < 0.8 * read.perplexity(shuffled)


@pytest.mark.parametrize(("sentences", "order", "message"), [
    ([], 3, "no token"), ([[]], 3, "no token"), ([["a"]], 4, "long enough"), ([["a"]], 1, "at least"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused(sentences, order, message):
    with pytest.raises(ValueError, match=message):
        train(sentences, order)


def test_marks_in_the_text_are_not_the_model_s_own():
    model = train([["a", BEGIN, "b", END, UNKNOWN, "c"]], 2)
    assert model.flat.tolist() == [1, 3, 4, 5, 2]
