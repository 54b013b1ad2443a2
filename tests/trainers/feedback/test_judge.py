"""Judges: what counts, what is reported, and the published figures from raw replies."""

import json
import lzma
import math
from pathlib import Path

import pytest

from cluster.errors import DataError
from trainers.answers import write_answers
from trainers.feedback.judge import (
    Comparing,
    Judgement,
    Pair,
    Rating,
    compare,
    expected_score,
    fill,
    label,
    rate,
    report,
    verdict,
)

DATA = Path(__file__).parents[4] / "shared/data/posttrain/llmbar_pairs_with_judge_outputs.jsonl.xz"


class Scripted:
    """A judge by rule: `choose(first, second)` gives the place, 0 or 1, of the better one."""

    def __init__(self, choose, name="scripted"):
        self.choose, self.name, self.asked = choose, name, 0

    def _place(self, chat):
        text = chat[-1]["content"]
        first, second = text.split("|")[1:3]
        return self.choose(first, second)

    def write(self, chats, draw):
        self.asked += len(chats)
        return [["AB"[self._place(chat)]] * draw.samples for chat in chats]

    def label_log_probs(self, chats, labels):
        self.asked += len(chats)
        return [[math.log(0.8), math.log(0.2)][:: 1 if self._place(chat) == 0 else -1] for chat in chats]


PLAIN = "{prompt}|{first}|{second}|"
PAIRS = [Pair("say", ("a" * i, "b" * (j + 7)), 0) for i in range(1, 5) for j in range(3)]


def longer(first, second):
    return int(len(second) > len(first))


def place_of_first(_first, _second):
    return 0


@pytest.mark.parametrize("mode", ["answer", "reasoning", "log_prob"])
def test_a_judge_of_length_labels_every_pair_alike_in_both_orders(mode):
    settings = Comparing(mode=mode, template=PLAIN)
    found = compare(Scripted(longer), PAIRS, settings)
    assert [one.label for one in found] == [1] * len(PAIRS)
    figures = report(found, [pair.gold for pair in PAIRS])
    assert (figures.agreed, figures.position_bias, figures.accuracy) == (len(PAIRS), 0.0, 0.0)
    if mode == "log_prob":
        assert [one.probability for one in found] == pytest.approx([0.2] * len(PAIRS))


@pytest.mark.parametrize("mode", ["answer", "log_prob"])
def test_a_judge_of_places_labels_nothing(mode):
    found = compare(Scripted(place_of_first), PAIRS, Comparing(mode=mode, template=PLAIN))
    assert [one.label for one in found] == [None] * len(PAIRS)
    figures = report(found, [pair.gold for pair in PAIRS])
    assert (figures.agreed, figures.ties, figures.position_bias, figures.accuracy) == (0, len(PAIRS), 0.5, 0.5)


def test_replies_are_read_as_people_read_them():
    labels = ("Output (a)", "Output (b)")
    assert verdict("Output (a)", labels) == 0
    assert verdict("Both Output (a) and Output (b) are fine", labels) is None
    assert verdict("Output (a) errs. Therefore, Output (b) is better.", labels, "reasoning") == 1
    assert verdict("I cannot say", labels) is None
    assert verdict("A better one: B", ("A", "B"), "reasoning") == 1
    assert verdict("Apples", ("A", "B")) is None
    assert fill("{prompt} {x} {first}", prompt="{first}", first="1") == "{first} {x} 1"


def test_unreadable_replies_are_neither_ties_nor_agreement():
    found = report([Judgement(None, None), Judgement(0, None), Judgement(0, 1), Judgement(1, 1)], [0, 0, 0, 1])
    assert (found.unreadable, found.ties, found.agreed) == (2, 1, 1)
    assert found.accuracy == pytest.approx(4 / 8)
    assert found.accuracy_agreed == 1.0


def test_an_interrupted_judge_goes_on_and_writes_what_an_undisturbed_one_writes(tmp_path, chat_tokenizer):
    examples = [{"prompt": f"say {i}", "answers": ["x" * (i + 1), "y" * (i + 3), "z" * (i + 2)]} for i in range(10)]
    settings = Comparing(template=PLAIN, batch=4)
    whole = Scripted(longer)
    figures = label(examples, whole, settings, str(tmp_path / "whole"))
    assert (figures.pairs, figures.agreed, whole.asked) == (30, 30, 60)

    class Dies(Scripted):
        def write(self, chats, draw):
            if self.asked >= 24:
                raise KeyboardInterrupt
            return super().write(chats, draw)

    with pytest.raises(KeyboardInterrupt):
        label(examples, Dies(longer), settings, str(tmp_path / "cut"))
    log = tmp_path / "cut/judgements.jsonl"
    log.write_text(log.read_text() + '{"key": "torn')
    rest = Scripted(longer)
    assert label(examples, rest, settings, str(tmp_path / "cut")) == figures
    assert rest.asked == 60 - 24
    for name in ("preferences.jsonl", "report.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "cut/preferences.jsonl").open()]
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    for kind in ("jsonl", "parquet"):
        source = str(tmp_path / f"cut/preferences.{kind}")
        about = write_answers(source, chat_tokenizer, str(tmp_path / kind), seq_len=256, validation=0)
        assert (about["documents"], about["refused"]) == (60, {})


def test_the_expected_score_is_the_mean_under_the_probabilities_of_the_digits():
    logs = [math.log(p) for p in (0.1, 0.1, 0.2)]
    assert expected_score(logs, [1, 2, 3]) == pytest.approx((0.1 + 0.2 + 0.6) / 0.4)

    class Digits:
        name = "digits"

        def label_log_probs(self, chats, labels):
            assert labels == ["Score: 1", "Score: 2", "Score: 3"]
            return [[0.0, -50.0, -50.0] if "bad" in chat[-1]["content"] else [-50.0, -50.0, -1.0] for chat in chats]

    settings = Rating(lowest=1, highest=3, lead="Score: ")
    assert rate(Digits(), ["p", "p"], ["bad", "good"], settings) == pytest.approx([1.0, 3.0])
    with pytest.raises(DataError, match="says nothing"):
        rate(Digits(), ["p"], ["a"], Rating(lowest=2, highest=2))


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data/posttrain")
def test_the_published_agreement_and_accuracy_follow_from_the_raw_replies():
    with lzma.open(DATA) as lines:
        rows = [json.loads(line) for line in lines]
    labels = ("Output (a)", "Output (b)")

    def figures(judge, part):
        found, gold = [], []
        for row in rows:
            if part in row["subset"] and judge in row["judges"]:
                said = row["judges"][judge]
                mode = "reasoning" if "CoT" in judge else "answer"
                straight = verdict(said["swap = False"]["text"], labels, mode)
                swapped = verdict(said["swap = True"]["text"], labels, mode)
                found.append(Judgement(straight, None if swapped is None else 1 - swapped))
                gold.append(row["label"] - 1)
        return report(found, gold)

    accuracy = {
        ("GPT-4/Vanilla", "Natural"): 95.9,
        ("GPT-4/Vanilla", "Adversarial"): 81.5,
        ("GPT-4/Vanilla_NoRules", "Natural"): 94.9,
        ("GPT-4/Vanilla_NoRules", "Adversarial"): 70.9,
        ("GPT-4/Vanilla_NoRules", "Processed"): 79.9,
        ("ChatGPT/Vanilla", "Natural"): 83.7,
        ("ChatGPT/Vanilla", "Adversarial"): 26.8,
    }
    assert {key: round(100 * figures(*key).accuracy, 1) for key in accuracy} == accuracy
    assert round(figures("GPT-4/Vanilla", "Natural").agreement, 3) == 0.959
    assert round(figures("ChatGPT/Vanilla", "Natural").agreement, 3) == 0.796
    biased = figures("ChatGPT/Vanilla", "Adversarial")
    assert biased.position_bias > 0.1  # it likes what it sees first
    # what both orders agree on is right more often than one order is
    agreed = figures("GPT-4/Vanilla_NoRules", "Processed")
    assert agreed.accuracy_agreed > agreed.accuracy + 0.03
