"""Rewards by rules: what is right is paid, what only looks right is not, and no answer harms the run."""

import math
import time

import pytest

from cluster.errors import DataError, RecipeError
from trainers.rewards import Scorer, last_number, mathematics, number, passes

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16 - 3 = 13\n#### 1,234", 1234.0),
        ("#### -7.5 dollars, not 8", -7.5),
        (r"so \boxed{3/4} of 12", 0.75),
        ("I add 3 and 4: 7.", 7.0),
        ("no number here", None),
        ("1/0", None),
    ],
)
def test_the_number_is_the_one_that_the_answer_ends_with(text, value):
    assert last_number(text) == value


def test_a_right_number_pays_in_any_writing_and_a_wrong_one_does_not():
    record = {"answer": "She has 5 + 5 = 10.\n#### 1,000"}
    assert number(record, "the answer is 1000.0") == 1.0
    assert number(record, "10 and then 1001") == 0.0
    assert number(record, "") == 0.0
    with pytest.raises(RecipeError, match="holds no number"):
        number({"answer": "many"}, "3")


def test_mathematics_knows_equal_expressions_and_leaves_what_never_ends():
    pytest.importorskip("math_verify")
    half = "$\\frac{1}{2}$"
    answers = ["it is $\\boxed{0.5}$", "$" + "(" * 300 + "1" + ")" * 300 + "$", "$\\boxed{0.6}$", "", "$\\frac{2}{4}$"]
    started = time.monotonic()
    assert mathematics([{"answer": half}] * 5, answers, seconds=1.0) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert time.monotonic() - started < 100


def broken(record, answer):
    return math.nan if "b" in answer else 0.0


def two_for_three(records, answers):
    return [0.0] * (len(answers) - 1)


def test_a_reward_that_is_no_number_is_named_before_it_reaches_the_model():
    scorer = Scorer({f"{__name__}:broken": 1.0})
    with pytest.raises(DataError, match="broken is nan for the prompt 'p', answer 'ab'"):
        scorer.all([{"prompt": "p"}] * 2, ["a", "ab"])
    with pytest.raises(DataError, match="two_for_three gave 1 values for 2 answers"):
        Scorer({f"{__name__}:two_for_three": 1.0}).all([{}] * 2, ["a", "b"])


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", 1.0),
        ("def add(a, b):\n    return a + b", 1.0),
        ("```python\ndef add(a, b):\n    return a - b\n```", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("x = bytearray(1 << 33)\ndef add(a, b): return a + b", 0.0),
        ("open('big', 'wb').write(b'0' * (1 << 22))\ndef add(a, b): return a + b", 0.0),
        ("this is no program", 0.0),
    ],
)
def test_only_code_that_runs_its_tests_to_the_end_within_limits_passes(answer, value):
    assert passes({"tests": TESTS}, answer) == value


def test_endless_code_and_its_children_are_ended():
    started = time.monotonic()
    forking = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nwhile True: pass"
    assert passes({"tests": TESTS}, forking, seconds=1.0) == 0.0
    assert time.monotonic() - started < 20


def test_the_sum_weighs_its_rules_and_refuses_what_they_do_not_know():
    scorer = Scorer(
        {"number": 2.0, "format": {"weight": 0.5, "pattern": "<a>.*</a>"}, "length": {"most": 4, "scale": 8}}
    )
    values = scorer({"answer": "3"}, "<a>3</a>")
    assert values == {"number": 1.0, "format": 1.0, "length": -0.5}
    assert scorer.total(values) == 2.0 + 0.5 - 0.5
    own = Scorer({"trainers.rewards:number": 1.0})
    assert own.total(own({"answer": "3"}, "3")) == 1.0
    for wrong, message in (
        ({"numbr": 1}, "did you mean 'number'"),
        ({"format": 1}, "needs the setting 'pattern'"),
        ({"number": {"kee": "x"}}, "no setting 'kee'"),
        ({"os:nothing": 1}, "os:nothing"),
    ):
        with pytest.raises(RecipeError, match=message):
            Scorer(wrong)
