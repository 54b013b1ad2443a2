"""Harder instructions out of easy ones: a model rewrites each, epoch by epoch, and what has failed is eliminated.

Xu et al. 2023 (WizardLM, Evol-Instruct), section 3: five ways to make an instruction deeper and one to make a new one
of the same kind; four rules of elimination. An instruction whose rewriting failed goes into the next epoch as it was.
Records are conversations with their lineage. Imports no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.errors import DataError
from cluster.settings import Settings
from trainers.answers import read_examples
from trainers.feedback.judge import fill, write_rows
from trainers.feedback.self_instruct import words_of
from trainers.feedback.stages import same_loop, stage
from trainers.feedback.writer import Draw, Model, Writer, key_of, user

DEEPER = """Make the instruction below somewhat harder for a strong assistant, in one way: {how}. It must stay clear
and answerable by people, keep tables and code, and grow by 10 to 20 words. Reply with the new instruction alone.

Instruction: {instruction}"""
BROADER = """Write one new instruction of the same domain as the one below, of like length and difficulty, but rarer. It
must be clear and answerable by people. Reply with the new instruction alone.

Instruction: {instruction}"""
WAYS = {
    "constraints": "add one more requirement or condition",
    "deepening": "ask further into the matter, if it asks something",
    "concretizing": "put something more specific in place of a general notion",
    "reasoning": "if a few simple steps solve it, ask for what takes several steps of reasoning",
    "input": "add data that the answer must use, such as a table, code, a formula or a text",
    "breadth": "",
}
"""The six ways of evolving; each is as likely as the others (section 3.2)."""
EQUAL = """Do these two instructions ask for the same, with the same constraints, at the same depth and breadth? Reply
with Equal or Not equal alone.

First: {first}

Second: {second}"""
COPIED = ("given instruction", "new instruction", "rewritten instruction", "instruction:", "10 to 20 words")
"""Words of the question that a failed rewriting repeats."""
STOP_WORDS = frozenset(
    words_of(
        "a an and are as at be but by can do for from had has have he i if in is it its me my no not of on or she so "
        "that the their them then there they this to was we were what which who will with you your"
    )
)


class EvolInstruct(Settings):
    """Settings of the synthesis."""

    seeds: str = Field(description="JSONL or Parquet with `instruction`, `prompt` or `messages` to begin with")
    writer: Model = Field(description="who rewrites, and says whether something was gained")
    answerer: Model | None = Field(None, description="who answers; None: the same model")
    epochs: int = Field(4, gt=0, description="rewritings of each instruction, one after another")
    chunk: int = Field(64, gt=0, description="instructions whose work is kept together")
    sorry_words: int = Field(80, ge=0, description="an answer with `sorry` and fewer words says that it is too hard")
    draw: Draw = Field(Draw(temperature=0.7, max_tokens=1024), description="how instructions are drawn")  # type: ignore[call-arg]
    answering: Draw = Field(Draw(max_tokens=2048), description="how answers are drawn")  # type: ignore[call-arg]
    seed: int = Field(0, ge=0, description="of the choice of ways")


def eliminated(before: str, after: str, answer: str, equal: bool, sorry_words: int) -> str | None:
    """Why an evolved instruction is dropped, None when it is not (section 3.2, elimination evolving)."""
    if any(text in after.lower() and text not in before.lower() for text in COPIED):
        return "copied"
    if equal or not after.strip() or words_of(after) == words_of(before):
        return "no_gain"
    words = words_of(answer)
    if "sorry" in words and len(words) < sorry_words:
        return "too_hard"
    if all(word in STOP_WORDS for word in words):
        return "empty_answer"
    return None


def evol_instruct(
    settings: EvolInstruct, out: str, writer: Writer | None = None, answerer: Writer | None = None
) -> dict[str, Any]:
    """Write OUT/instructions.jsonl and .parquet, {"messages", "lineage"} as SFT takes them; what went and why.

    The seeds with their answers and every evolved instruction that stayed, of all epochs (section 4.1). Every chunk of
    an epoch is kept when it is finished; the same call goes on after the last one. `writer` and `answerer` are asked
    instead of the models in the settings.
    """
    top = Path(out)
    same_loop(top, settings.model_dump(mode="json", exclude={"epochs"}))
    seeds = [_instruction(row, settings.seeds) for row in read_examples(settings.seeds)]
    if not seeds:
        raise DataError(f"{settings.seeds}: holds no instructions")
    writer = writer or settings.writer.open()
    answerer = answerer or (settings.answerer.open() if settings.answerer else writer)
    names = {"writer": writer.name, "answerer": answerer.name, "seeds": settings.seeds}
    gone: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    now = list(seeds)
    for epoch in range(settings.epochs + 1):
        for start in range(0, len(now), settings.chunk):
            part = now[start : start + settings.chunk]
            path = top / f"epoch-{epoch}" / f"{start:06d}.json"
            found = stage(path, lambda p=part, s=start, e=epoch: _evolved(settings, p, s, e, writer, answerer))  # type: ignore[misc]
            for place, one in enumerate(found, start):
                if one["why"]:
                    gone[one["why"]] += 1
                    continue
                now[place] = one["instruction"]
                messages = [*user(one["instruction"]), {"role": "assistant", "content": one["answer"]}]
                more = {"seed": place, "epoch": epoch, "way": one["way"], "parent": one["parent"]}
                rows.append({"messages": messages, "lineage": {**names, **more}})
    write_rows(rows, top / "instructions")
    return {"seeds": len(seeds), "instructions": len(rows), "epochs": settings.epochs, "eliminated": dict(gone)}


def _instruction(row: dict[str, Any], where: str) -> str:
    if "messages" in row:
        return str(row["messages"][0]["content"])
    for name in ("instruction", "prompt", "question"):
        if isinstance(row.get(name), str):
            return "\n".join(text for text in (row[name], row.get("input") or "") if text)
    raise DataError(f"{where}: an example has neither instruction nor prompt nor messages: {json.dumps(row)[:200]}")


def _evolved(
    settings: EvolInstruct, before: list[str], start: int, epoch: int, writer: Writer, answerer: Writer
) -> list[dict[str, Any]]:
    """One epoch of some instructions: rewritten (not in epoch 0), answered, and why it was eliminated."""
    ways: list[str | None] = [None] * len(before)
    after, equal = before, [False] * len(before)
    if epoch:
        names = list(WAYS)
        ways = [
            names[np.random.default_rng([settings.seed, epoch, start + i]).integers(len(names))]
            for i in range(len(before))
        ]
        asked = [
            fill(BROADER if way == "breadth" else DEEPER, how=WAYS[str(way)], instruction=text)
            for way, text in zip(ways, before, strict=True)
        ]
        draw = settings.draw.model_copy(update={"seed": settings.draw.seed + epoch})
        after = [texts[0].strip() for texts in writer.write([user(text) for text in asked], draw)]
        same = [fill(EQUAL, first=first, second=second) for first, second in zip(before, after, strict=True)]
        said = writer.write([user(text) for text in same], Draw(max_tokens=4))  # type: ignore[call-arg]
        equal = [texts[0].strip().lower().startswith("equal") for texts in said]
    answers = [texts[0].strip() for texts in answerer.write([user(text) for text in after], settings.answering)]
    return [
        {
            "instruction": new, "answer": answer, "way": way, "parent": key_of(old) if epoch else None,
            "why": eliminated(old, new, answer, alike, settings.sorry_words) if epoch else None,
        }
        for old, new, answer, way, alike in zip(before, after, answers, ways, equal, strict=True)
    ]  # fmt: skip
