"""Few-shot tasks by log-likelihood: multiple choice and cloze, on packed rows.

Prompts with k shots are built from the task's own train items. All continuations are packed as documents into rows and
scored in one pass over them, by the same model call as training, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from trainers.batch import IGNORE, Batch, Rows, collate, filled_up, share_of
from trainers.evaluate.task import Task, shots_for
from trainers.ranks import Ranks
from trainers.roles import Role


@dataclass(frozen=True)
class Request:
    """One text to score: the log-likelihood of ids[start:] given ids[:start]."""

    item: int
    choice: int
    ids: list[int] = field(repr=False)
    start: int
    size: int
    """Bytes of the continuation, for a score that does not favour short answers."""

    @property
    def columns(self) -> int:
        """Positions that it takes in a row: its last token is only predicted, never read."""
        return len(self.ids) - 1


def requests(task: Task, tokenizer: Any, *, shots: int, seq_len: int, seed: int = 0) -> list[Request]:
    """All texts to score, k-shot prompts included; a prompt too long for a row loses shots, then its own beginning.

    Prompt and continuation are tokenised together, and the continuation is what follows the prompt's own tokens:
    so no token pair is seen that the tokenizer would never give. An empty prompt is the tokenizer's beginning or end of
    text. Scores are those of lm-evaluation-harness, which does the same. Raises DataError when there are too few shots.
    """
    nothing = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    made = []
    for number, item in enumerate(task.test):
        chosen = shots_for(task, number, shots, seed)
        for choice, text in enumerate(item["choices"] if task.kind == "multiple_choice" else [item["target"]]):
            ids: list[int] = []
            start = 0
            for dropped in range(shots + 1):
                prompt = "".join(f"{_solved(shot)}\n\n" for shot in chosen[dropped:]) + item["prompt"].rstrip()
                start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
                ids = tokenizer(prompt + _joined(item, text), add_special_tokens=False).input_ids
                if not start:
                    ids, start = [nothing, *ids], 1
                if len(ids) <= seq_len + 1:
                    break
            cut = max(0, len(ids) - seq_len - 1)
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
def score(
    role: Role,
    asked: Sequence[Request],
    *,
    seq_len: int,
    micro_rows: int,
    ranks: Ranks,
    want: Literal["token_losses", "misses"] = "token_losses",
) -> np.ndarray:
    """Σ log p(continuation) per request, float64 [requests], the same on every rank. A collective.

    With "misses": 0 where every token of the continuation is the likeliest one, else less.
    """
    rows: list[list[int]] = []
    room = 0
    for number, request in enumerate(asked):
        if not rows or request.columns > room:
            rows.append([])
            room = seq_len
        rows[-1].append(number)
        room -= request.columns
    found = np.zeros(len(asked))
    for part in share_of(ranks.rank, ranks.world, len(rows), micro_rows):
        batch, places = _packed(asked, [rows[i] for i in part], seq_len)
        sums = role(filled_up(batch, micro_rows, seq_len), want).double().cpu().numpy()
        for number, row, first, end in places:
            found[number] = -sums[row, first:end].sum()
    return np.array(ranks.sum(found.tolist()))


def _packed(
    asked: Sequence[Request], rows: Sequence[Sequence[int]], seq_len: int
) -> tuple[Batch, list[tuple[int, int, int, int]]]:
    """The batch of some rows, and per request (number, row, first and end position whose targets are its own)."""
    ids, targets = np.zeros((len(rows), seq_len), np.int64), np.full((len(rows), seq_len), IGNORE, np.int64)
    lengths, places = [], []
    for row, numbers in enumerate(rows):
        at = 0
        for number in numbers:
            request = asked[number]
            first, end = at + request.start - 1, at + request.columns
            ids[row, at:end] = request.ids[:-1]
            targets[row, first:end] = request.ids[request.start :]
            places.append((number, row, first, end))
            at = end
        lengths.append(np.array([asked[number].columns for number in numbers], np.int64))
    return replace(collate(Rows(ids, lengths, None)), targets=torch.from_numpy(targets)), places


def summarise(
    task: Task, asked: Sequence[Request], scores: np.ndarray, misses: np.ndarray | None = None
) -> dict[str, float]:
    """Figures of one task.

    multiple choice: accuracy, accuracy_per_byte (scores over the bytes of each choice; acc_norm of the harness divides
    by characters), log_likelihood of the right choice (mean), brier = mean Σ_choices (p − 1[right])², p = softmax of
    the scores.
    cloze: accuracy (targets of which every token is the likeliest one, by `misses`), probability of the whole target
    (mean), log_likelihood (mean), bits_per_byte.
    """
    if task.kind == "cloze":
        sizes = sum(request.size for request in asked)
        return ({} if misses is None else {"accuracy": float((misses == 0).mean())}) | {
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
    role: Role,
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    shots: int,
    seq_len: int,
    micro_rows: int,
    ranks: Ranks,
    positions: int | None = None,
) -> dict[str, float]:
    """{"TASK_accuracy": …} over tasks. Rows have `seq_len` tokens, up to `positions` where a text is longer. A
    collective."""
    figures: dict[str, float] = {}
    for task in tasks:
        asked = requests(task, tokenizer, shots=shots, seq_len=positions or seq_len)
        length = max(seq_len, *(request.columns for request in asked))
        run = partial(score, role, asked, seq_len=length, micro_rows=micro_rows, ranks=ranks)
        told = summarise(task, asked, run(), run(want="misses") if task.kind == "cloze" else None)
        figures |= {f"{task.name}_{name}": value for name, value in told.items()}
    return figures
