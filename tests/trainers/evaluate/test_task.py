import gzip
import io
import json
import lzma

import pyarrow as pa
import pytest

from cluster.errors import DataError
from trainers.evaluate.task import read_task, read_tasks, shots_for

CHOICE = {"prompt": "the mat was", "choices": ["cat", "flat"], "answer": 1}
PROBLEM = {"question": "2 + 2?", "answer": "It is #### 4"}
PROGRAM = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}


def zstd(path, _mode):
    """A text file to write, which ends up as Zstandard."""
    return io.TextIOWrapper(pa.output_stream(str(path), compression="zstd"), encoding="utf-8-sig")


def _write(path, items, opener=open):
    with opener(path, "wt") as out:
        out.write("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def test_what_an_item_holds_says_how_it_is_judged(tmp_path):
    items = [CHOICE, {"prompt": "a", "target": "b"}, PROBLEM, PROGRAM]
    kinds = [read_task(_write(tmp_path / f"{n}.jsonl", [item])).kind for n, item in enumerate(items)]
    assert kinds == ["multiple_choice", "cloze", "number", "program"]


@pytest.mark.parametrize(("ending", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open), (".zst", zstd)])
def test_a_folder_is_a_task_whose_train_split_gives_the_shots(tmp_path, ending, opener):
    folder = tmp_path / "sums"
    folder.mkdir()
    _write(folder / f"train.jsonl{ending}", [{**PROBLEM, "question": f"q{n}"} for n in range(5)], opener)
    _write(folder / f"test.jsonl{ending}", [PROBLEM] * 3, opener)
    task = read_task(str(folder), limit=2)
    assert (task.name, len(task.train), len(task.test)) == ("sums", 5, 2)
    drawn = [tuple(one["question"] for one in shots_for(task, number, 3)) for number in range(2)]
    assert all(len(set(one)) == 3 for one in drawn)
    assert drawn == [tuple(one["question"] for one in shots_for(task, number, 3)) for number in range(2)]
    with pytest.raises(DataError, match="6 shots, but only 5 train items"):
        shots_for(task, 0, 6)


def test_programs_without_a_train_split_are_asked_without_shots(tmp_path):
    assert shots_for(read_task(_write(tmp_path / "code.jsonl.gz", [PROGRAM], gzip.open)), 0, 3) == []


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"prompt": "x", "choices": ["a"], "answer": 1}, r"bad\.jsonl:2: answer 1 of 1 choices"),
        ({"prompt": "x", "choices": ["a"], "answer": "a"}, r"bad\.jsonl:2: answer 'a' of 1 choices"),
        ({"prompt": "x"}, r"bad\.jsonl:2: needs prompt, and either target"),
        ({"question": "x", "answer": "none"}, r"bad\.jsonl:2: the answer of a word problem holds no number"),
        ([1], r"bad\.jsonl:2: an object was expected, found list"),
        (PROBLEM, r"different kinds: multiple_choice \(.*:1\) and number \(.*:2\)"),
    ],
)
def test_a_wrong_item_is_named_by_its_line(tmp_path, item, said):
    with pytest.raises(DataError, match=said):
        read_task(_write(tmp_path / "bad.jsonl", [CHOICE, item]))


def test_files_that_are_no_tasks_are_named(tmp_path):
    (tmp_path / "noise.jsonl").write_text("no json\n")
    (tmp_path / "noise.jsonl.gz").write_text("no gzip\n")
    for name, said in (("noise.jsonl", "not JSON"), ("noise.jsonl.gz", "not a JSONL text file"), ("", "folder holds")):
        with pytest.raises(DataError, match=said):
            read_task(str(tmp_path / name))
    with pytest.raises(DataError, match="no test item"):
        read_task(_write(tmp_path / "train.jsonl", [{**CHOICE, "split": "train"}]))


def test_two_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [_write(tmp_path / "a.jsonl", [CHOICE]), _write(tmp_path / "b/a.jsonl.gz", [CHOICE], gzip.open)]
    assert [task.name for task in read_tasks(paths[:1])] == ["a"]
    with pytest.raises(DataError, match=r"2 tasks named a: .*a\.jsonl, .*a\.jsonl\.gz; rename"):
        read_tasks(paths)
