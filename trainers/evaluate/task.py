"""Task files: JSONL, plain, .gz, .xz or .zst, one item a line. What an item holds says how it is judged.

    {"prompt", "choices": [text, …], "answer": index}     multiple choice, by log-likelihood
    {"prompt", "target": text}                            cloze, by log-likelihood
    {"question", "answer": text with a number}            a word problem as in GSM8K, by a written solution
    {"prompt", "test", "entry_point"}                     a program as in HumanEval, by running it against its tests

    {"problem", "solution"}                               mathematics as in MATH, by a written solution (math-verify)

Rows of MMLU, CMMLU, ARC, HellaSwag, PIQA, BoolQ and LAMBADA are taken as they are published (shapes.py). Items with
"split": "train" are for the prompts' worked examples, all others are asked. A task may also be a folder: test (or
validation, val, dev) is asked, train (or dev) gives the examples, those of an item's own "subject" where it has one.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.errors import DataError
from trainers.answers import open_lines
from trainers.evaluate.shapes import as_item

Kind = Literal["multiple_choice", "cloze", "number", "mathematics", "program"]
GENERATED: tuple[Kind, ...] = ("number", "mathematics", "program")
"""Kinds whose answers a model writes."""
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")
ASKED, SOLVED = ("test", "validation", "valid", "val", "dev"), ("train", "dev")
"""Names of a folder's files: the first that is there is asked; the first other one gives the worked examples."""


@dataclass(frozen=True)
class Task:
    """The items of one file."""

    name: str
    kind: Kind
    train: list[dict[str, Any]] = field(repr=False)
    test: list[dict[str, Any]] = field(repr=False)


def read_task(path: str, limit: int = 0) -> Task:
    """A task from a file or a folder; at most `limit` test items (0: all). Raises DataError naming the line."""
    train: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    kinds: dict[Kind, str] = {}
    for file, split in _files(path):
        for place, row in _lines(file):
            try:
                item = as_item(row)
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None
            kinds.setdefault(_kind(item, place), place)
            if len(kinds) > 1:
                found = " and ".join(f"{kind} ({where})" for kind, where in kinds.items())
                raise DataError(f"{path}: items of different kinds: {found}; make a task of each")
            (train if split == "train" or item.get("split") == "train" else test).append(item)
    if not test:
        raise DataError(f"{path}: no test item")
    return Task(_stem(path), next(iter(kinds)), train, test[:limit] if limit else test)


def read_tasks(paths: Sequence[str], limit: int = 0) -> list[Task]:
    """Several tasks. Raises DataError when two have one name: their figures could not be told apart."""
    tasks = [read_task(path, limit) for path in paths]
    for task, path in zip(tasks, paths, strict=True):
        same = [other for other, one in zip(paths, tasks, strict=True) if one.name == task.name]
        if len(same) > 1:
            raise DataError(f"{path}: {len(same)} tasks named {task.name}: {', '.join(same)}; rename a file or folder")
    return tasks


def shots_for(task: Task, number: int, shots: int, seed: int = 0) -> list[dict[str, Any]]:
    """The worked examples in front of test item `number`: drawn from the train items, for every item its own.

    Those of the item's subject alone where there are enough, and never the item itself. Programs have none where the
    task has no train items (HumanEval). Raises DataError when others have too few.
    """
    if not shots or (task.kind == "program" and not task.train):
        return []
    item = task.test[number]
    usable = [one for one in task.train if _question(one) != _question(item)]
    if shots > len(usable):
        raise DataError(
            f"task {task.name}: {shots} shots, but only {len(usable)} train items; mark items with "
            '"split": "train", or give a folder with train.jsonl and test.jsonl'
        )
    of_subject = [one for one in usable if "subject" in item and one.get("subject") == item["subject"]]
    pool = of_subject if len(of_subject) >= shots else usable
    return [pool[i] for i in np.random.default_rng([seed, number]).permutation(len(pool))[:shots]]


def _question(item: dict[str, Any]) -> Any:
    return next((item[name] for name in ("prompt", "question", "problem") if name in item), None)


def _files(path: str) -> list[tuple[Path, str]]:
    """(file, split): one file, or the train and test files of a folder."""
    if not Path(path).is_dir():
        return [(Path(path), "")]
    there = {name: file for name in {*ASKED, *SOLVED} for end in ENDINGS if (file := Path(path, name + end)).is_file()}
    asked = next((name for name in ASKED if name in there), None)
    if asked is None:
        raise DataError(
            f"{path}: a task's folder holds test.jsonl (or {', '.join(ASKED[1:])}; also .gz, .xz, .zst), and perhaps "
            "train"
        )
    solved = next((name for name in SOLVED if name in there and name != asked), None)
    found = [(there[solved], "train")] if solved else []
    found.append((there[asked], "test"))
    return found


def _stem(path: str) -> str:
    name = Path(path).name
    return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), Path(path).stem)


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with io.TextIOWrapper(open_lines(str(file)), encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise DataError(f"{file}:{number}: an object was expected, found {type(item).__name__}")
                    yield f"{file}:{number}", item
    except FileNotFoundError:
        raise DataError(f"{file}: no such task file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{number}: not JSON: {error}") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{file}: not a JSONL text file: {error}") from None


def _kind(item: dict[str, Any], place: str) -> Kind:
    """How an item is judged. Raises DataError for one that is of no kind."""
    if {"prompt", "test", "entry_point"} <= set(item):
        return "program"
    if isinstance(item.get("question"), str) and isinstance(item.get("answer"), str):
        if not any(letter.isdigit() for letter in item["answer"]):
            raise DataError(f"{place}: the answer of a word problem holds no number: {item['answer'][:80]!r}")
        return "number"
    if isinstance(item.get("problem"), str) and isinstance(item.get("solution"), str):
        return "mathematics"
    if "prompt" not in item or ("target" not in item and not ("choices" in item and "answer" in item)):
        raise DataError(
            f"{place}: needs prompt, and either target, or choices and answer; or question and answer; or problem and "
            "solution; or prompt, test and entry_point; or the fields of a benchmark in trainers/evaluate/shapes.py; "
            f"has {sorted(item)}"
        )
    if "choices" not in item:
        return "cloze"
    answer, choices = item["answer"], item["choices"]
    if not isinstance(answer, int) or not isinstance(choices, list) or not 0 <= answer < len(choices):
        most = len(choices) if isinstance(choices, list) else 0
        raise DataError(f"{place}: answer {answer!r} of {most} choices; the index of one, from 0, was expected")
    return "multiple_choice"
