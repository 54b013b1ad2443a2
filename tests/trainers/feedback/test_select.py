"""Selection: votes and verifiers by hand, pass@k by counting, search over steps, and GSM8K's published any-of-4."""

import itertools
import json
import lzma
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from trainers.feedback import select
from trainers.feedback.select import Candidates, against_n, aggregate, beam_search, choose, force_budget
from trainers.feedback.verifier import from_right_solutions

MATH = Path(__file__).parents[4] / "shared/data/math"


def test_each_method_takes_the_answer_that_it_stands_for():
    made = Candidates(
        ["3", "4", "4", None, "5"],
        right=[False, False, False, False, True],
        scores=[0.6, 0.2, 0.3, 0.9, 0.1],
        steps=[[0.9, 0.5], [0.6, 0.6], [0.7, 0.55, 1.0], [1.0, 0.1], []],
    )
    found = {method: choose(made, method) for method in select.METHODS}
    assert found == {
        "first": 0, "majority": 1, "outcome": 3, "weighted": 0, "process_min": 1, "process_product": 0,
        "process_last": 2, "oracle": 4,
    }  # fmt: skip
    assert [aggregate([0.5, 0.8], how) for how in ("min", "product", "last", "mean")] == [0.5, 0.4, 0.8, 0.65]
    with pytest.raises(DataError, match="needs `scores`"):
        choose(Candidates(["1"]), "outcome")
    with pytest.raises(DataError, match="a weight of -1"):
        select.weighted_majority(["1"], [-1.0])


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples, data):
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations(range(samples), k))
    share = sum(any(i < right for i in subset) for subset in subsets) / len(subsets)
    assert select.pass_at_k(samples, right, k) == pytest.approx(share)
    problem = Candidates(["x"] * samples, right=[i < right for i in range(samples)])
    (line,) = against_n([problem], ["oracle"], [k], draws=100)
    assert line.accuracy == pytest.approx(share)


def test_a_beam_guided_by_steps_finds_what_greedy_steps_miss():
    good = ("b", "a", "c")

    def extend(solutions, width):
        return [[(letter, len(solution) == 2) for letter in "abc"[:width]] for solution in solutions]

    def score(solutions):  # the right way looks worse at first
        return [0.9 if s == good else 0.5 if s == good[: len(s)] else 0.6 if len(s) == 1 else 0.4 for s in solutions]

    narrow = beam_search(extend, score, beams=1, width=3)
    wide = beam_search(extend, score, beams=3, width=3)
    assert narrow[0].steps != good
    assert wide[0].steps == good
    assert wide[0].finished


@pytest.mark.parametrize(
    ("least", "most", "thought", "spent"),
    [
        (5, 20, " a a\nWait a a\nWait a a</t>", 6),
        (0, 20, " a a</t>", 2),
        (9, 3, " a a\nWait a</t>", 3),
        (0, 1, " a</t>", 1),
    ],
)
def test_a_thought_is_made_longer_or_closed(least, most, thought, spent):
    def write(text, room):
        return " a" * min(2, room), min(2, room)

    assert force_budget(write, "p", least=least, most=most, end="</t>") == (thought, spent)
    silent = force_budget(lambda text, room: ("", 0), "p", least=least, most=most, end="</t>")
    assert silent == ("</t>", 0)


def test_a_score_that_is_no_number_never_wins():
    nan = float("nan")
    for how in ("min", "product", "last", "mean"):
        assert aggregate([nan, 0.5], how) == aggregate([0.5, nan], how) == -math.inf
    assert choose(Candidates(["a", "b"], steps=[[nan], [0.1]]), "process_min") == 1
    with pytest.raises(DataError, match="a weight of nan"):
        select.weighted_majority(["a", "b"], [nan, 1.0])
    found = beam_search(lambda some, n: [[("a", True), ("b", True)] for _ in some], lambda some: [nan, 0.1], beams=1)
    assert found[0].steps == ("b",)


@pytest.mark.skipif(not MATH.exists(), reason="no ../shared/data/math")
def test_gsm8k_any_of_four_is_the_published_one_and_an_honest_verifier_helps():
    def read(name, most):
        with lzma.open(MATH / name) as lines:
            return [json.loads(line) for line in itertools.islice(lines, most)]

    train = read("gsm8k_train.jsonl.xz", 2000)
    verifier = from_right_solutions([x["question"] for x in train], [x["answer"] for x in train])
    problems = []
    for row in read("gsm8k_test_with_model_solutions.jsonl.xz", None):
        models = list(row["model_solutions"].values())
        texts = [model["solution"] for model in models]
        raw = {"solutions": texts, "right": [model["is_correct"] for model in models]}
        raw["scores"] = [verifier(row["question"], text) for text in texts]
        problems.append(select.candidates_of(raw))
    methods = ["majority", "outcome", "weighted", "oracle"]
    lines = against_n(problems, methods, [1, 4])
    found = {(line.method, line.n): round(100 * line.accuracy, 1) for line in lines}
    assert found["oracle", 4] == 65.2
    assert found["majority", 1] == 37.3  # any one of them
    assert found["majority", 4] > 47
    assert found["outcome", 4] > 40
    assert found["weighted", 4] > 48
