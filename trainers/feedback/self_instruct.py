"""Instruction data from a handful of tasks: a model writes new instructions, the unlike ones are kept and answered.

Wang et al. 2023 (Self-Instruct), section 2: examples in context → new instructions → filtered → answered. Records are
conversations with their lineage. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.errors import DataError
from cluster.settings import Settings
from trainers.feedback.judge import write_rows
from trainers.feedback.stages import same_loop, stage
from trainers.feedback.writer import Draw, Model, Writer, key_of, user

WRITE = "Come up with a series of different tasks. Continue the list, one task a line, numbered.\n\n{examples}\n{next}."
KIND = """Can this task be regarded as a classification task, with few possible outputs? Reply with Yes or No alone.

Task: {instruction}"""
UNFIT = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "draw", "plot", "video",
    "audio", "music", "flowchart", "diagram", "go to",
)  # fmt: skip
"""What a language model cannot see or do, by the paper's list."""
_WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W_]+")


class SelfInstruct(Settings):
    """Settings of the synthesis."""

    seeds: str = Field(description="JSONL of tasks: instruction, is_classification, instances with input and output")
    writer: Model = Field(description="who writes instructions")
    answerer: Model | None = Field(None, description="who answers them; None: the same model")
    wanted: int = Field(1000, gt=0, description="new instructions to keep")
    rounds: int = Field(1000, gt=0, description="stop after so many requests for instructions")
    from_seeds: int = Field(6, gt=0, description="tasks by people in each prompt")
    from_made: int = Field(2, ge=0, description="tasks by the model in each prompt, once there are some")
    at_once: int = Field(8, gt=0, description="prompts per round")
    similarity: float = Field(0.7, gt=0, le=1, description="ROUGE-L to any earlier instruction that is too much")
    least_words: int = Field(4, gt=0, description="shorter instructions are refused")
    most_words: int = Field(150, gt=0, description="longer ones too")
    draw: Draw = Field(Draw(temperature=0.7, max_tokens=1024), description="how instructions are drawn")  # type: ignore[call-arg]
    answering: Draw = Field(Draw(max_tokens=1024), description="how answers are drawn")  # type: ignore[call-arg]
    seed: int = Field(0, ge=0, description="of the choice of examples")


def words_of(text: str) -> list[str]:
    """Lower-case words; each Han character or kana is a word."""
    return _WORD.findall(text.lower())


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of the longest common subsequence, 2 LCS / (|a| + |b|). Lin 2004; bit-parallel (Hyyrö 2004), O(|a||b|/64)."""
    if not a or not b:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    whole = (1 << len(a)) - 1
    row = whole
    for word in b:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & whole
    return 2 * (len(a) - row.bit_count()) / (len(a) + len(b))


class Unlike:
    """The instructions so far; a new one is compared only with those that could be too similar.

    LCS is at most the number of shared words, an exact bound: nothing that is too similar is missed.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.compared = 0
        self._all: list[tuple[list[str], Counter[str]]] = []

    def add(self, text: str) -> None:
        words = words_of(text)
        self._all.append((words, Counter(words)))

    def too_similar(self, text: str) -> bool:
        """Whether ROUGE-L to an earlier one reaches the limit."""
        words = words_of(text)
        counts = Counter(words)
        for other, seen in self._all:
            whole = len(words) + len(other)
            if 2 * min(len(words), len(other)) < self.limit * whole:
                continue
            if 2 * sum(min(n, seen[word]) for word, n in counts.items()) < self.limit * whole:
                continue
            self.compared += 1
            if rouge_l(words, other) >= self.limit:
                return True
        return False


def unfit(text: str, settings: SelfInstruct) -> str | None:
    """Why an instruction is refused by itself, None when it is not."""
    words = words_of(text)
    if len(words) < settings.least_words:
        return "too_short"
    if len(words) > settings.most_words:
        return "too_long"
    if any(re.search(rf"\b{re.escape(word)}\b", text.lower()) for word in UNFIT):
        return "not_text"
    if text.lower().startswith("write a program"):
        return "program"
    if not text[0].isalnum():
        return "odd_start"
    return None


def listed(text: str) -> list[str]:
    """The items of a numbered list; the first may have lost its number, which the prompt ended with."""
    parts = re.split(r"(?:^|\n)\s*\d{1,3}\s*[.):]\s*", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


def self_instruct(
    settings: SelfInstruct, out: str, writer: Writer | None = None, answerer: Writer | None = None
) -> dict[str, Any]:
    """Write OUT/instructions.jsonl and .parquet, {"messages", "lineage"} as SFT takes them; what was refused and why.

    Every round is kept when it is finished; the same call goes on after the last one. `writer` and `answerer` are
    asked instead of the models in the settings.
    """
    top = Path(out)
    same_loop(top, settings.model_dump(mode="json", exclude={"wanted", "rounds"}))
    lines = Path(settings.seeds).read_text(encoding="utf-8").splitlines()
    seeds = [json.loads(line)["instruction"] for line in lines if line.strip()]
    if len(seeds) < settings.from_seeds:
        raise DataError(f"{settings.seeds}: {len(seeds)} tasks, from_seeds needs {settings.from_seeds}")
    writer = writer or settings.writer.open()
    answerer = answerer or (settings.answerer.open() if settings.answerer else writer)
    unlike = Unlike(settings.similarity)
    for seed in seeds:
        unlike.add(seed)
    made: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    number = 0
    while len(made) < settings.wanted and number < settings.rounds:
        found = stage(top / "rounds" / f"{number:05d}.json", lambda n=number: _round(settings, n, seeds, made, writer))  # type: ignore[misc]
        for prompt, text in found:
            why = unfit(text, settings) or ("too_similar" if unlike.too_similar(text) else None)
            if why or len(made) >= settings.wanted:
                refused[why or "enough"] += 1
                continue
            unlike.add(text)
            made.append({"instruction": text, "round": number, "prompt": prompt})
        number += 1
    rows = [row for start in range(0, len(made), 64) for row in _answered(top, start, made, settings, writer, answerer)]
    write_rows(rows, top / "instructions")
    return {"instructions": len(rows), "rounds": number, "refused": dict(refused)}


def _round(
    settings: SelfInstruct, number: int, seeds: list[str], made: list[dict[str, Any]], writer: Writer
) -> list[tuple[str, str]]:
    """(key of the prompt, instruction) of one round's replies."""
    chats = []
    for place in range(settings.at_once):
        rng = np.random.default_rng([settings.seed, number, place])
        shown = [seeds[i] for i in rng.choice(len(seeds), settings.from_seeds, replace=False)]
        more = min(settings.from_made, len(made))
        shown += [made[i]["instruction"] for i in rng.choice(len(made), more, replace=False)] if more else []
        order = rng.permutation(len(shown))
        examples = "\n".join(f"{i}. {' '.join(shown[at].split())}" for i, at in enumerate(order, 1))
        chats.append(user(WRITE.replace("{examples}", examples).replace("{next}", str(len(shown) + 1))))
    draw = settings.draw.model_copy(update={"seed": settings.draw.seed + number})
    replies = writer.write(chats, draw)
    return [
        (key_of(chat), text)
        for chat, texts in zip(chats, replies, strict=True)
        for reply in texts
        for text in listed(reply)
    ]


def _answered(
    top: Path, start: int, made: list[dict[str, Any]], settings: SelfInstruct, writer: Writer, answerer: Writer
) -> list[dict[str, Any]]:
    """Conversations of 64 instructions from `start` on, kept when they are finished."""
    part = made[start : start + 64]

    def work() -> list[Mapping[str, Any]]:
        asked = [user(one["instruction"]) for one in part]
        questions = [user(KIND.replace("{instruction}", one["instruction"])) for one in part]
        kinds = writer.write(questions, Draw(max_tokens=4))  # type: ignore[call-arg]
        answers = answerer.write(asked, settings.answering)
        lineage = {"writer": writer.name, "answerer": answerer.name, "seeds": settings.seeds}
        return [
            {
                "messages": [*chat, {"role": "assistant", "content": texts[0]}],
                "classification": kind[0].strip().lower().startswith("yes"),
                "lineage": {**lineage, "round": one["round"], "prompt": one["prompt"]},
            }
            for one, chat, kind, texts in zip(part, asked, kinds, answers, strict=True)
            if texts[0].strip() and texts[0].strip() != one["instruction"]
        ]

    key = key_of([one["instruction"] for one in part])
    return stage(top / "answers" / f"{start:06d}-{key[:8]}.json", work)  # type: ignore[no-any-return]
