"""Few-shot tasks by log-likelihood: multiple choice and cloze, from JSONL files, on packed rows.

A task file has one item a line, {"split": "train" or "test", "prompt": text, …} with
    "choices": [text, …], "answer": index     multiple choice
    "target": text                            cloze
Prompts with k shots are built from the task's own train items. All continuations are packed as documents into rows and
scored in one pass over them, by the same model call as training, on any number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cluster.errors import DataError
from trainers.batch import Batch, Rows, collate, filled_up, share_of
from trainers.ranks import Ranks
from trainers.roles import Role


@dataclass(frozen=True)
class Task:
    """The items of one file."""

    name: str
    kind: Literal["multiple_choice", "cloze"]
    train: list[dict[str, Any]] = field(repr=False)
    test: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Request:
    """One text to score: the log-likelihood of ids[start:] given ids[:start]."""

    item: int
    choice: int
    ids: list[int] = field(repr=False)
    start: int
    size: int
    """Bytes of the continuation, for a score that does not favour short answers."""


def read_task(path: str, limit: int = 0) -> Task:
    """A task from JSONL; at most `limit` test items (0: all). Raises DataError naming the line."""
    items = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None
        if "prompt" not in item or ("target" not in item and not ("choices" in item and "answer" in item)):
            raise DataError(
                f"{path}:{number}: needs prompt, and either target, or choices and answer; has {sorted(item)}"
            )
        if "choices" in item and not 0 <= item["answer"] < len(item["choices"]):
            raise DataError(f"{path}:{number}: answer {item['answer']} of {len(item['choices'])} choices")
        items.append(item)
    train = [item for item in items if item.get("split") == "train"]
    test = [item for item in items if item.get("split") != "train"]
    if not test:
        raise DataError(f"{path}: no test item")
    kind: Literal["multiple_choice", "cloze"] = "multiple_choice" if "choices" in test[0] else "cloze"
    return Task(Path(path).stem, kind, train, test[:limit] if limit else test)


def requests(task: Task, tokenizer: Any, *, shots: int, seq_len: int, seed: int = 0) -> list[Request]:
    """All texts to score, k-shot prompts included; a prompt too long for a row loses shots, then its own beginning.

    Prompt and continuation are tokenised together, and the continuation is what follows the prompt's own tokens:
    so no token pair is seen that the tokenizer would never give. Raises DataError when the task has too few shots.
    """
    if shots > len(task.train):
        raise DataError(f"task {task.name}: {shots} shots, but only {len(task.train)} train items")
    made = []
    for number, item in enumerate(task.test):
        rng = np.random.default_rng([seed, number])
        chosen = [task.train[i] for i in rng.permutation(len(task.train))[:shots]]
        for choice, text in enumerate(item["choices"] if task.kind == "multiple_choice" else [item["target"]]):
            ids: list[int] = []
            start = 0
            for dropped in range(shots + 1):
                prompt = "".join(f"{_solved(shot)}\n\n" for shot in chosen[dropped:]) + item["prompt"].rstrip()
                start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
                ids = tokenizer(prompt + _joined(item, text), add_special_tokens=False).input_ids
                if len(ids) <= seq_len:
                    break
            cut = max(0, len(ids) - seq_len)
            ids, start = ids[cut:], max(1, min(start - cut, len(ids) - cut - 1))
            made.append(Request(number, choice, ids, start, max(1, len(text.encode()))))
    return made


def _joined(item: dict[str, Any], text: str) -> str:
    """The space that stood at the end of the prompt belongs to the continuation."""
    space = item["prompt"][len(item["prompt"].rstrip()) :] or " "
    return space + text.lstrip()


def _solved(item: dict[str, Any]) -> str:
    text = item["choices"][item["answer"]] if "choices" in item else item["target"]
    return f"{item['prompt'].rstrip()}{_joined(item, text)}"


@torch.no_grad()
def score(role: Role, asked: Sequence[Request], *, seq_len: int, micro_rows: int, ranks: Ranks) -> np.ndarray:
    """Σ log p(continuation) per request, float64 [requests], the same on every rank. A collective."""
    rows: list[list[int]] = []
    room = 0
    for number, request in enumerate(asked):
        if not rows or len(request.ids) > room:
            rows.append([])
            room = seq_len
        rows[-1].append(number)
        room -= len(request.ids)
    found = np.zeros(len(asked))
    for part in share_of(ranks.rank, ranks.world, len(rows), micro_rows):
        batch, places = _packed(asked, [rows[i] for i in part], seq_len)
        losses = role(filled_up(batch, micro_rows, seq_len), "token_losses").double().cpu().numpy()
        for number, row, first, end in places:
            found[number] = -losses[row, first:end].sum()
    return np.array(ranks.sum(found.tolist()))


def _packed(
    asked: Sequence[Request], rows: Sequence[Sequence[int]], seq_len: int
) -> tuple[Batch, list[tuple[int, int, int, int]]]:
    """The batch of some rows, and per request (number, row, first and end position whose targets are its own)."""
    ids = np.zeros((len(rows), seq_len), np.int64)
    mask = np.zeros((len(rows), seq_len), bool)
    lengths, places = [], []
    for row, numbers in enumerate(rows):
        at = 0
        for number in numbers:
            request = asked[number]
            end = at + len(request.ids)
            ids[row, at:end] = request.ids
            mask[row, at + request.start : end] = True
            places.append((number, row, at + request.start - 1, end - 1))
            at = end
        lengths.append(np.array([len(asked[number].ids) for number in numbers], np.int64))
    return collate(Rows(ids, lengths, mask)), places


def summarise(task: Task, asked: Sequence[Request], scores: np.ndarray) -> dict[str, float]:
    """Figures of one task.

    multiple choice: accuracy, accuracy_per_byte (scores divided by the bytes of each choice), log_likelihood of the
    right choice (mean), brier = mean Σ_choices (p − 1[right])², p = softmax of the scores.
    cloze: probability of the whole target (mean), log_likelihood (mean), bits_per_byte.
    """
    if task.kind == "cloze":
        sizes = sum(request.size for request in asked)
        return {
            "probability": float(np.exp(scores).mean()),
            "log_likelihood": float(scores.mean()),
            "bits_per_byte": float(-scores.sum() / np.log(2) / sizes),
        }
    right = per_byte = brier = likelihood = 0.0
    for number, item in enumerate(task.test):
        mine = [i for i, request in enumerate(asked) if request.item == number]
        values = scores[mine]
        answer = item["answer"]
        right += float(np.argmax(values) == answer)
        per_byte += float(np.argmax(values / [asked[i].size for i in mine]) == answer)
        likelihood += values[answer]
        chance = np.exp(values - values.max())
        chance /= chance.sum()
        brier += float(((chance - np.eye(len(values))[answer]) ** 2).sum())
    items = len(task.test)
    return {
        "accuracy": right / items,
        "accuracy_per_byte": per_byte / items,
        "log_likelihood": likelihood / items,
        "brier": brier / items,
    }


def measure(
    role: Role, tasks: Sequence[Task], tokenizer: Any, *, shots: int, seq_len: int, micro_rows: int, ranks: Ranks
) -> dict[str, float]:
    """{"TASK_accuracy": …} over tasks. A collective."""
    figures: dict[str, float] = {}
    for task in tasks:
        asked = requests(task, tokenizer, shots=shots, seq_len=seq_len)
        scores = score(role, asked, seq_len=seq_len, micro_rows=micro_rows, ranks=ranks)
        figures |= {f"{task.name}_{name}": value for name, value in summarise(task, asked, scores).items()}
    return figures


def measure_folder(folder: str, paths: Sequence[str], *, shots: int = 0, limit: int = 0) -> dict[str, float]:
    """The same for an exported model and task files, in this process."""
    from trainers.model import PackedLM, load, load_tokenizer, pick_attention
    from trainers.roles import Frozen

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm = load(folder, dtype)
    seq_len = min(2048, int(lm.config.max_position_embeddings))
    role = Frozen(PackedLM(lm, pick_attention(device)), device, dtype)
    tasks = [read_task(path, limit) for path in paths]
    tokenizer = load_tokenizer(folder)
    return measure(
        role, tasks, tokenizer, shots=shots, seq_len=seq_len, micro_rows=4, ranks=Ranks(0, 1, torch.device("cpu"))
    )
