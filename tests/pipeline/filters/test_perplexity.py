import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import ODD, batch_of, reasons, score

from cluster.errors import RecipeError
from pipeline.filters.perplexity import Perplexity, perplexities, sentences
from pipeline.step import Documents

pytest.importorskip("kenlm")
ONE = {"<unk>": -3.0, "</s>": -1.0, "the": -0.5, "cat": -1.2, "好": -0.9, "猫": -1.5}
BACKOFF = {"<s>": -0.3, "the": -0.2, "cat": -0.1, "好": -0.4, "猫": -0.25}
TWO = {("<s>", "the"): -0.2, ("the", "cat"): -0.4, ("cat", "</s>"): -0.3, ("<s>", "好"): -0.35, ("好", "猫"): -0.6}


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    lines = [
        "\\data\\",
        f"ngram 1={len(ONE) + 1}",
        f"ngram 2={len(TWO)}",
        "",
        "\\1-grams:",
        f"-99\t<s>\t{BACKOFF['<s>']}",
    ]
    lines += [f"{p}\t{w}\t{BACKOFF[w]}" if w in BACKOFF else f"{p}\t{w}" for w, p in ONE.items()]
    lines += ["", "\\2-grams:", *(f"{p}\t{a} {b}" for (a, b), p in TWO.items()), "", "\\end\\", ""]
    path = tmp_path_factory.mktemp("model") / "two.arpa"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def plain(lines):
    """Perplexity by hand: bigrams, else back-off and unigram."""
    total, count = 0.0, 0
    for tokens in lines:
        before = "<s>"
        for token in [*tokens, "</s>"]:
            known = token if token in ONE else "<unk>"
            total += TWO.get((before, known), BACKOFF.get(before, 0.0) + ONE[known])
            before = known
            count += 1
    return 10 ** (-total / count)


@pytest.mark.parametrize(
    ("text", "tokens", "lines"),
    [("the cat", "words", [["the", "cat"]]), ("The CAT\n\nthe dog", "words", [["the", "cat"], ["the", "dog"]]),
     ("好猫", "characters", [["好", "猫"]]), ("猫 好狗", "characters", [["猫", "好", "狗"]])],
)  # fmt: skip
def test_the_perplexity_is_that_of_the_model(arpa, text, tokens, lines):
    assert score(Perplexity(model=arpa, tokens=tokens), "perplexity", text) == pytest.approx(plain(lines), rel=1e-5)


@pytest.mark.parametrize(("text", "tokens"), [("the cat", "words"), ("好猫", "characters")])
@pytest.mark.parametrize("side", [-1, 0, 1])
def test_both_bounds(arpa, text, tokens, side):
    value = score(Perplexity(model=arpa, tokens=tokens), "perplexity", text)
    high = Perplexity(model=arpa, tokens=tokens, max_perplexity=value + side * 1e-9)
    low = Perplexity(model=arpa, tokens=tokens, min_perplexity=value + side * 1e-9)
    assert reasons(high, text) == ["too_surprising" if side < 0 else None]
    assert reasons(low, text) == ["too_predictable" if side > 0 else None]


def test_buckets_are_head_middle_and_tail(arpa):
    step = Perplexity(model=arpa, head_max=5, middle_max=50)
    docs = Documents(batch_of(["the cat", "the dog", "x y z", ""]))
    values = step.scores(docs)["perplexity"]
    assert values[0] < 5 < values[1] < 50 < values[2]
    assert math.isnan(values[3])
    assert step.columns(docs)["perplexity_bucket"].to_pylist() == ["head", "middle", "tail", None]


def test_a_document_counts_alone(arpa):
    step = Perplexity(model=arpa)
    texts = [*ODD, b"\xed\xa0\x80", b"cut \xe4", "the cat"]
    whole = step.scores(Documents(batch_of(texts)))["perplexity"]
    for row in range(len(texts)):
        alone = step.scores(Documents(batch_of(texts).slice(row, 1)))["perplexity"][0]
        assert alone == whole[row] or (math.isnan(alone) and math.isnan(whole[row]))


def test_what_cannot_work_is_refused(arpa):
    with pytest.raises(RecipeError, match="no model at"):
        Perplexity(model="/nowhere.arpa").check()
    with pytest.raises(RecipeError, match="go together"):
        Perplexity(model=arpa, tokens="sentencepiece").check()
    with pytest.raises(RecipeError, match="go together"):
        Perplexity(model=arpa, head_max=3).check()


SPACES = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())


@given(
    st.lists(st.sampled_from([*SPACES, "\n", "the", "THE", "cat", "猫", "é", "İ", "\0", "7", "70", "०"])).map("".join)
)
def test_words_end_at_every_white_space_that_unicode_knows(arpa, text):
    import kenlm

    lines = list(sentences(text, str.split, lower=True))
    assert lines == [kept for line in text.lower().split("\n") if (kept := zeroed(line).split())]
    count = sum(map(len, lines)) + len(lines)
    total = sum(kenlm.Model(arpa).score(" ".join(tokens)) for tokens in lines)
    expected = math.pow(10.0, -total / count) if count else math.nan
    found = perplexities(Documents(batch_of([text])), arpa, str.split, True)[0]
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def zeroed(line):
    return "".join("0" if c in "123456789" else c for c in line)
