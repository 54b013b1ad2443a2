"""SPIN: the model plays against itself of the iteration before, from instruction data alone (Chen et al. 2024).

Per iteration: the opponent answers the prompts; the main player, which begins with the opponent's weights, learns to
tell the real answers from those, L = ℓ(λ[(log π(y) − log ρ(y)) − (log π(y') − log ρ(y'))]) with y real, y' the
opponent's, ρ the opponent, ℓ(t) = log(1 + e^−t) (eq. 4.7): the preference loss with a reference of its own start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.settings import Settings
from trainers.feedback.stages import as_chat, same_loop, spread, stage, trained, write_jsonl, write_texts
from trainers.feedback.writer import Draw
from trainers.workers import Crew, crewed


class Spin(Settings):
    """Settings of the loop."""

    model: str = Field(description="transformers folder of the instruction-tuned model to begin with")
    data: tuple[str, ...] = Field(description="JSONL or Parquet files of prompts with real answers")
    iterations: int = Field(3, gt=0, description="rounds of play; the paper shows 3 to 4")
    beta: float = Field(0.1, gt=0, description="λ of the paper")
    keep_previous: bool = Field(True, description="from the second round on, learn from the last round's answers too")
    draw: Draw = Field(Draw(temperature=1.0, max_tokens=256), description="how the opponent answers")  # type: ignore[call-arg]
    seq_len: int = Field(2048, gt=0, description="tokens per packed row")
    train: dict[str, Any] = Field(default_factory=dict, description="recipe fields of each round: steps, schedule, …")
    workers: int = Field(2, gt=0, description="processes that answer at a time")
    chunk: int = Field(32, gt=0, description="prompts per task of a process")


def real_pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str]]:
    """(prompt, real answer) of each example: `prompt` with `answer`, `chosen` or `completion`, or `messages`."""
    found: list[tuple[Any, str]] = []
    for row in rows:
        if "messages" in row:
            found.append((row["messages"][:-1], row["messages"][-1]["content"]))
        else:
            answer = next(row[name] for name in ("answer", "chosen", "completion", "output") if name in row)
            found.append((row["prompt"], answer))
    return found


def spin(settings: Spin, out: str, crew: Crew | None = None) -> list[dict[str, Any]]:
    """Play all rounds; the figures of each, with the folder of its model.

    A round is OUT/round-N with answers/, pairs.jsonl, packed/ and run/; finished parts of an interrupted call are kept.
    """
    with crewed(crew) as own:
        return _play(settings, out, own)


def _play(settings: Spin, out: str, crew: Crew) -> list[dict[str, Any]]:
    from trainers.answers import read_examples, write_answers

    top = Path(out)
    same_loop(top, settings.model_dump(mode="json"))
    real = real_pairs([row for path in settings.data for row in read_examples(path)])
    opponent, rounds = settings.model, []
    before: list[str] = []
    for number in range(settings.iterations):
        folder = top / f"round-{number}"
        draw = settings.draw.model_copy(update={"seed": settings.draw.seed + number})
        chats = [as_chat(prompt) for prompt, _ in real]
        written = spread(
            write_texts, opponent, chats, draw.model_dump(mode="json"), folder / "answers",
            workers=settings.workers, chunk=settings.chunk, crew=crew,
        )  # fmt: skip
        pairs = [
            {"prompt": prompt, "chosen": answer, "rejected": row["texts"][0]}
            for (prompt, answer), row in zip(real, written, strict=True)
            if row["texts"][0] != answer
        ]
        path = write_jsonl(folder / "pairs.jsonl", pairs)
        sources = [*before, path] if settings.keep_previous else [path]
        packed = str(folder / "packed")

        def pack(sources: list[str] = sources, packed: str = packed) -> dict[str, Any]:
            return write_answers(sources, settings.model, packed, seq_len=settings.seq_len)

        about = stage(folder / "packed.json", pack)
        recipe = round_recipe(settings, opponent, packed)
        result = stage(folder / "result.json", lambda r=recipe, f=folder: trained(r, f / "run", crew))  # type: ignore[misc]
        same = 1 - len(pairs) / max(1, len(real))
        rounds.append({**result, "pairs": about["prompts"], "same_as_real": same})
        opponent, before = result["model"], [path]
    return rounds


def round_recipe(settings: Spin, opponent: str, packed: str) -> dict[str, Any]:
    """The training recipe of one round."""
    objective = {"loss": "dpo", "beta": settings.beta, "reference": "start", **settings.train.get("objective", {})}
    return {**settings.train, "trainer": "preference", "data": packed, "start_from": opponent, "objective": objective}
