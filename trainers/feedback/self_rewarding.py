"""Self-rewarding: the model answers, judges its own answers, and learns to prefer the better ones (Yuan et al. 2024).

M1 learns from instruction data (IFT) and from examples of judging (EFT). Then per round, section 2.2: new prompts,
several answers to each, the model's own additive 5-point score of each, best and worst as a pair for DPO, from M_t to
M_{t+1}. Each round reports how well the judge ranks held-out answers that people have scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from trainers.feedback.judge import Rating, fill, prompt_text
from trainers.feedback.stages import (
    as_chat,
    rate_texts,
    same_loop,
    spread,
    stage,
    trained,
    write_jsonl,
    write_texts,
)
from trainers.feedback.writer import Draw
from trainers.workers import Crew, crewed

ADDITIVE = """Review the answer to the request below and give it points. Add one point for each that holds:
- it says something that belongs to the request, even if it is incomplete;
- it covers a good part of what was asked;
- it answers the basic elements of the request in a useful way;
- it is clear, complete and well ordered, written as by a helpful assistant;
- it is of expert quality, without a superfluous word.

Request: {prompt}

Answer: {answer}

Conclude with the points from {lowest} to {highest}, in the form: Score: points"""


class SelfRewarding(Settings):
    """Settings of the loop."""

    model: str = Field(description="transformers folder to begin with: a base model, or M1 when ift and eft are empty")
    ift: tuple[str, ...] = Field((), description="files of instructions with answers: `prompt` and `answer`")
    eft: tuple[str, ...] = Field((), description="files of judged answers: `prompt`, `answer` and `score`")
    prompts: tuple[str, ...] = Field(
        description="files with `prompt`, or `messages` without their last, to answer; each round takes the next ones"
    )
    per_round: int = Field(1000, gt=0, description="prompts of a round")
    iterations: int = Field(2, gt=0, description="rounds of DPO: M2, M3, …")
    draw: Draw = Field(Draw(temperature=0.7, top_p=0.9, samples=4), description="how answers are drawn")  # type: ignore[call-arg]
    judging: Rating = Field(
        Rating(template=ADDITIVE, lowest=0, highest=5, lead="Score: "),
        description="how the model is asked about an answer; its expected score counts",
    )
    held_out: tuple[str, ...] = Field(
        (), description="judged answers as in eft, never trained on, to measure the judge"
    )
    least_gap: float = Field(
        0.0, ge=0, description="prompts whose best and worst answer differ by no more are left out"
    )
    beta: float = Field(0.1, gt=0, description="of DPO")
    seq_len: int = Field(2048, gt=0, description="tokens per packed row")
    begin: dict[str, Any] = Field(default_factory=dict, description="recipe fields of the training of M1")
    train: dict[str, Any] = Field(default_factory=dict, description="recipe fields of each round")
    workers: int = Field(2, gt=0, description="processes that answer and judge at a time")
    chunk: int = Field(32, gt=0, description="prompts per task of a process")


def judging_examples(rows: Sequence[Mapping[str, Any]], judging: Rating) -> list[dict[str, Any]]:
    """EFT: the judge's prompt with the score that it should give, as an instruction with its answer."""
    bounds = {"lowest": judging.lowest, "highest": judging.highest}
    return [
        {
            "prompt": fill(judging.template, prompt=prompt_text(row["prompt"]), answer=row["answer"], **bounds),
            "answers": [f"{judging.lead}{round(float(row['score']))}"],
        }
        for row in rows
    ]


def agreement(rows: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """How a judge's scores fit people's: share of pairs ranked alike, exact scores after rounding, and mean |error|.

    Pairs are answers to one prompt with different scores by people, or all pairs where each prompt has one answer; a
    tie of the judge counts one half.
    """
    gold = [float(row["score"]) for row in rows]
    names = [prompt_text(row["prompt"]) for row in rows]
    several = len(set(names)) < len(names)
    right = total = 0.0
    for i, j in itertools.combinations(range(len(rows)), 2):
        if gold[i] != gold[j] and (names[i] == names[j] or not several):
            total += 1
            side = (scores[i] - scores[j]) * (gold[i] - gold[j])
            right += 1.0 if side > 0 else 0.5 if side == 0 else 0.0
    count = max(1, len(rows))
    return {
        "pairs": right / total if total else 0.5,
        "exact": sum(round(s) == round(g) for s, g in zip(scores, gold, strict=True)) / count,
        "error": sum(abs(s - g) for s, g in zip(scores, gold, strict=True)) / count,
    }


def best_and_worst(
    prompts: Sequence[Any], answers: Sequence[Sequence[str]], scores: Sequence[Sequence[float]], least_gap: float
) -> list[dict[str, Any]]:
    """One preference pair per prompt; prompts whose answers have equal scores, or are one answer, give none."""
    pairs = []
    for prompt, texts, values in zip(prompts, answers, scores, strict=True):
        order = sorted(range(len(texts)), key=lambda i: (values[i], -i))
        worst, best = order[0], order[-1]
        if values[best] - values[worst] > least_gap and texts[best] != texts[worst]:
            pairs.append({"prompt": prompt, "chosen": texts[best], "rejected": texts[worst]})
    return pairs


def self_rewarding(settings: SelfRewarding, out: str, crew: Crew | None = None) -> list[dict[str, Any]]:
    """M1 and all rounds; the figures of each model: its judge's agreement, and the mean score of its own answers.

    A round is OUT/round-N; finished parts of an interrupted call are kept. The last entry has figures of the last
    model's judging alone.
    """
    with crewed(crew) as own:
        return _rounds(settings, out, own)


def _rounds(settings: SelfRewarding, out: str, crew: Crew) -> list[dict[str, Any]]:
    from trainers.answers import read_examples, write_answers

    top = Path(out)
    same_loop(top, settings.model_dump(mode="json"))
    rows = {
        name: [row for path in getattr(settings, name) for row in read_examples(path)]
        for name in ("ift", "eft", "held_out")
    }
    prompts = prompts_of(settings.prompts)
    if len(prompts) < settings.per_round * settings.iterations:
        raise RecipeError(
            f"{len(prompts)} prompts, {settings.iterations} rounds take {settings.per_round} each; give more, "
            "such as the instructions of self_instruct"
        )
    model = settings.model
    if rows["ift"] or rows["eft"]:
        seeds = [{"prompt": row["prompt"], "answers": [row["answer"]]} for row in rows["ift"]]
        path = write_jsonl(top / "seeds.jsonl", [*seeds, *judging_examples(rows["eft"], settings.judging)])
        packed = str(top / "seeds")
        stage(
            top / "seeds.json",
            lambda: write_answers(path, settings.model, packed, seq_len=settings.seq_len, validation=0),
        )
        recipe = {"start_from": model, **settings.begin, "trainer": "sft", "data": packed}
        model = stage(top / "m1.json", lambda: trained(recipe, top / "m1", crew))["model"]
    rounds = []
    for number in range(settings.iterations):
        mine = prompts[number * settings.per_round : (number + 1) * settings.per_round]
        found = _round(settings, model, mine, top / f"round-{number}", number, crew)
        found["agreement"] = _measured(settings, model, rows["held_out"], top / f"round-{number}", crew)
        rounds.append(found)
        model = found["model"]
    last = _measured(settings, model, rows["held_out"], top / "last", crew)
    return [*rounds, {"model": model, "agreement": last}]


def prompts_of(paths: Sequence[str]) -> list[Any]:
    """Prompts, text or messages: `prompt`, or what comes before the answer in `messages` (as self_instruct writes)."""
    from trainers.answers import read_examples

    found = []
    for path in paths:
        for number, row in enumerate(read_examples(path), 1):
            if not row.get("prompt") and not row.get("messages"):
                raise DataError(f"{path}, example {number}: neither `prompt` nor `messages`; found {', '.join(row)}")
            found.append(row.get("prompt") or row["messages"][:-1])
    return found


def _measured(
    settings: SelfRewarding, model: str, held_out: list[dict[str, Any]], folder: Path, crew: Crew
) -> dict[str, float]:
    asked = [(row["prompt"], row["answer"]) for row in held_out]
    judging = settings.judging.model_dump(mode="json")
    rated = spread(
        rate_texts, model, asked, judging, folder / "held_out",
        workers=settings.workers, chunk=4 * settings.chunk, crew=crew,
    )  # fmt: skip
    return agreement(held_out, [row["score"] for row in rated])


def _round(
    settings: SelfRewarding, model: str, prompts: list[Any], folder: Path, number: int, crew: Crew
) -> dict[str, Any]:
    from trainers.answers import write_answers

    how: dict[str, Any] = {"workers": settings.workers, "chunk": settings.chunk, "crew": crew}
    draw = settings.draw.model_copy(update={"seed": settings.draw.seed + number})
    chats = [as_chat(prompt) for prompt in prompts]
    written = spread(write_texts, model, chats, draw.model_dump(mode="json"), folder / "answers", **how)
    texts = [row["texts"] for row in written]
    asked = [(prompt, text) for prompt, many in zip(prompts, texts, strict=True) for text in many]
    judging = settings.judging.model_dump(mode="json")
    rated = [row["score"] for row in spread(rate_texts, model, asked, judging, folder / "scores", **how)]
    count = settings.draw.samples
    scores = [rated[i : i + count] for i in range(0, len(rated), count)]
    pairs = best_and_worst(prompts, texts, scores, settings.least_gap)
    if not pairs:
        raise RecipeError(f"{folder}: no two answers to one prompt differ in score; draw more, or lower least_gap")
    path, packed = write_jsonl(folder / "pairs.jsonl", pairs), str(folder / "packed")
    stage(folder / "packed.json", lambda: write_answers(path, settings.model, packed, seq_len=settings.seq_len))
    objective = {"loss": "dpo", "beta": settings.beta, **settings.train.get("objective", {})}
    recipe = {**settings.train, "trainer": "preference", "data": packed, "start_from": model, "objective": objective}
    result = stage(folder / "result.json", lambda: trained(recipe, folder / "run", crew))
    return {**result, "pairs": len(pairs), "mean_score": sum(rated) / len(rated)}
