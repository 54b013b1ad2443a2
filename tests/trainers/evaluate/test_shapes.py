"""Rows of public benchmarks become items; what is expected are the harness' own prompts."""

import itertools
import json
import lzma

import pytest

from cluster.errors import DataError
from trainers.evaluate import generate
from trainers.evaluate.shapes import as_item
from trainers.evaluate.task import read_task, shots_for

EXPECTED = {
    "MMLU": (
        {"question": "2 + 2? ", "subject": "sums", "choices": ["3", "4", "5", "6"], "answer": 1},
        ("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", ["A", "B", "C", "D"], 1),
    ),
    "MMLU, a letter": (
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"},
        ("2 + 2?\nA. 3\nB. 4\nAnswer:", ["A", "B"], 1),
    ),
    "CMMLU": (
        {"Question": "二加二", "A": "三", "B": "四", "C": "五", "D": "六", "Answer": "B"},
        ("二加二\nA. 三\nB. 四\nC. 五\nD. 六\n答案：", ["A", "B", "C", "D"], 1),
    ),
    "ARC": (
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        ("Question: Why?\nAnswer:", ["a", "b", "c"], 2),
    ),
    "ARC by AI2": (
        {"question": {"stem": "Why?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
         "answerKey": "B"},
        ("Question: Why?\nAnswer:", ["a", "b"], 1),
    ),
    "OpenBookQA": (
        {"question_stem": "The sun", "choices": {"text": ["is hot", "is wet"], "label": ["A", "B"]}, "answerKey": "A"},
        ("The sun", ["is hot", "is wet"], 0),
    ),
    "HellaSwag": (
        {
            "ind": 4, "activity_label": "Baking", "ctx_a": "A man bakes.", "ctx_b": "he [step] then", "ctx": "…",
            "endings": ["eats [title] it.", "[substeps] leaves."], "label": "1",
        },
        ("Baking: A man bakes. He then", ["eats. it.", " leaves."], 1),
    ),
    "PIQA": (
        {"goal": "Boil water", "sol1": "Heat it", "sol2": "Cool it", "label": 0},
        ("Question: Boil water\nAnswer:", ["Heat it", "Cool it"], 0),
    ),
    "BoolQ": (
        {"question": "is it wet", "title": "Water", "answer": True, "passage": "Water is wet."},
        ("Water is wet.\nQuestion: is it wet?\nAnswer:", ["no", "yes"], 1),
    ),
    "BoolQ of SuperGLUE": (
        {"question": "is it wet", "idx": 3, "label": 0, "passage": "Sand is dry."},
        ("Sand is dry.\nQuestion: is it wet?\nAnswer:", ["no", "yes"], 0),
    ),
    "the harness": ({"query": "q", "choices": ["a", "b"], "gold": 1}, ("q", ["a", "b"], 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_has_the_prompt_and_the_choices_of_the_harness(name):
    row, (prompt, choices, answer) = EXPECTED[name]
    item = as_item(row)
    assert (item["prompt"], item["choices"], item["answer"]) == (prompt, choices, answer)


def test_lambada_asks_for_the_last_word():
    assert as_item({"text": "he said good night"}) == {"prompt": "he said good", "target": "night"}


def _write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "E"}, "bad.jsonl:1: answer 'E' is none of A, B"),
        ({"question": "q", "choices": ["a", "b"], "answer": -1}, "answer -1 is none of A, B"),
        ({"endings": ["a", "b"], "ctx": "c", "label": ""}, "answer '' is none of 0, 1"),
        ({"question": "q", "choices": {"text": ["a"]}, "answerKey": "A"}, "KeyError: 'label'"),
        ({"question": "q", "passage": None, "answer": None}, "answer None is none of no, yes"),
        ({"text": "word"}, "has no last word"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        read_task(_write(tmp_path / "bad.jsonl", [row]))


def test_examples_are_of_the_subject_and_never_the_item_itself(tmp_path):
    rows = [EXPECTED["MMLU"][0] | {"question": f"q{n}?", "subject": "ab"[n % 2]} for n in range(8)]
    _write(tmp_path / "mmlu/dev.jsonl", rows)
    _write(tmp_path / "mmlu/test.jsonl", rows)
    task = read_task(str(tmp_path / "mmlu"))
    for number, item in enumerate(task.test):
        shots = shots_for(task, number, 3)
        assert {one["subject"] for one in shots} == {item["subject"]}
        assert item["prompt"] not in [one["prompt"] for one in shots]
    assert len(shots_for(task, 0, 7)) == 7  # more than the subject has: from all
    with pytest.raises(DataError, match="8 shots, but only 7 train items"):
        shots_for(task, 0, 8)


def test_cmmlu_is_read_as_it_is_published(tmp_path, data):
    (tmp_path / "cmmlu").mkdir()
    for name, split in (("cmmlu_dev.jsonl.gz", "dev.jsonl.gz"), ("cmmlu_test.jsonl.xz", "test.jsonl.xz")):
        (tmp_path / "cmmlu" / split).symlink_to(data / "eval_sets" / name)
    task = read_task(str(tmp_path / "cmmlu"))
    assert (task.kind, len(task.train), len(task.test)) == ("multiple_choice", 335, 5791)
    assert all(
        {one["subject"] for one in shots_for(task, n, 5)} == {task.test[n]["subject"]} for n in range(0, 5791, 97)
    )


def test_solutions_of_hendrycks_mathematics_are_right_and_those_of_others_are_not(data):
    pytest.importorskip("math_verify")
    with lzma.open(data / "math/hendrycks_math_test.jsonl.xz", "rt") as lines:
        items = [json.loads(line) for line in lines][::50]
    task = read_task(str(data / "math/hendrycks_math_test.jsonl.xz"))
    assert (task.kind, len(task.test)) == ("mathematics", 2500)
    assert all(generate.right(task, item, item["solution"] + "\nProblem: 7") for item in items)
    assert sum(generate.right(task, item, other["solution"]) for item, other in itertools.pairwise(items)) <= 5
    assert generate.question(task, 0, 0)[-1].endswith("\nSolution:")
