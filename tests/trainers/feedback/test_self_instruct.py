"""Self-Instruct with a writer by rule: what is kept, why not, and that an interruption changes nothing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.feedback.self_instruct import SelfInstruct, Unlike, listed, rouge_l, self_instruct, unfit
from trainers.feedback.writer import Model, key_of

SEEDS = Path(__file__).parents[4] / "shared/data/posttrain/self_instruct_seed_tasks.jsonl"


def lcs(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        new = [0]
        for j, y in enumerate(b):
            new.append(row[j] + 1 if x == y else max(row[j + 1], new[j]))
        row = new
    return row[-1]


TEXTS = st.lists(st.sampled_from("abcd"), max_size=70)


@given(TEXTS, TEXTS)
def test_rouge_l_is_that_of_the_longest_common_subsequence(a, b):
    expected = 2 * lcs(a, b) / (len(a) + len(b)) if a and b else 0.0
    assert rouge_l(a, b) == pytest.approx(expected)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), min_size=2, max_size=6))
def test_the_bound_by_shared_words_misses_nothing(texts):
    unlike = Unlike(0.7)
    for words in texts[:-1]:
        unlike.add(" ".join(words))
    expected = any(rouge_l(texts[-1], words) >= 0.7 for words in texts[:-1])
    assert unlike.too_similar(" ".join(texts[-1])) == expected


class Lister:
    """Writes two new tasks, one old and one unfit; answers with the task in capitals."""

    name = "lister"

    def __init__(self, dies_after=10**9):
        self.calls, self.dies_after = 0, dies_after

    def write(self, chats, draw):
        self.calls += 1
        if self.calls > self.dies_after:
            raise KeyboardInterrupt
        return [[self._text(chat[-1]["content"], draw.seed)] for chat in chats]

    def _text(self, asked, seed):
        if asked.startswith("Can this task"):
            return "Yes" if "0" in asked else "No"
        if not asked.startswith("Come up"):
            return asked.upper()
        a, b = (key_of(asked, seed, i) for i in range(2))
        new = [" ".join(h[i : i + 4] for i in range(0, 24, 4)) for h in (a, b)]
        return f" Name {new[0]}\n10. Show an image of a cat now\n11. Tell {new[1]}\n12. Seed task number 1 of some"


def settings_of(tmp_path, **changes):
    seeds = tmp_path / "seeds.jsonl"
    lines = [json.dumps({"instruction": f"Seed task number {i} of some"}) for i in range(8)]
    seeds.write_text("\n".join(lines))
    return SelfInstruct(seeds=str(seeds), writer=Model(folder="x"), wanted=100, rounds=9, at_once=3, **changes)


def test_an_interrupted_synthesis_ends_with_the_same_records(tmp_path):
    settings = settings_of(tmp_path)
    found = self_instruct(settings, str(tmp_path / "whole"), Lister())
    assert found["rounds"] == 9
    assert found["refused"] == {"not_text": 27, "too_similar": 27}
    assert found["instructions"] == 54
    with pytest.raises(KeyboardInterrupt):
        self_instruct(settings, str(tmp_path / "cut"), Lister(dies_after=5))
    rest = Lister()
    assert self_instruct(settings, str(tmp_path / "cut"), rest) == found
    assert rest.calls == 4 + 2  # rounds 6 to 9, kinds and answers
    for kind in ("jsonl", "parquet"):
        one, other = (tmp_path / name / f"instructions.{kind}" for name in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes()
    row = json.loads((tmp_path / "cut/instructions.jsonl").open().readline())
    assert row["messages"][1]["content"] == row["messages"][0]["content"].upper()
    assert row["lineage"]["writer"] == "lister"


def test_lists_are_read_and_unfit_tasks_refused(tmp_path):
    assert listed(" First thing\n10. Second\n thing\n11) Third") == ["First thing", "Second thing", "Third"]
    settings = settings_of(tmp_path)
    found = [
        unfit(t, settings) for t in ("Do it", "Plot a graph of the sea level", "Name four kinds of cats", "- a b c d")
    ]
    assert found == ["too_short", "not_text", None, "odd_start"]


@pytest.mark.skipif(not SEEDS.exists(), reason="no ../shared/data/posttrain")
def test_the_papers_seed_tasks_are_mostly_unlike_each_other():
    unlike, similar = Unlike(0.7), 0
    texts = [json.loads(line)["instruction"] for line in SEEDS.read_text().splitlines()]
    for text in texts:
        similar += unlike.too_similar(text)
        unlike.add(text)
    assert similar < 5
    assert unlike.compared < 200  # of 15,225 pairs
