"""Problems solved with more tokens: many samples, a search over steps, and thoughts of a forced length, side by side.

A local model answers; reward models judge whole answers (outcome) and steps (process). The samples with their scores
are written as `corpusmill feedback select` reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from trainers.architecture import positions
from trainers.feedback.select import Line, against_n, beam_search, candidates_of, force_budget
from trainers.feedback.stages import Row, as_chat, same_loop, spread, write_jsonl
from trainers.feedback.writer import Draw, key_of
from trainers.rewards import last_number


class Budget(Settings):
    """A thought of forced length before the answer."""

    least: int = Field(ge=0, description="tokens of the thought, at least")
    most: int = Field(gt=0, description="tokens of the thought, at most")
    wait: str = Field("\nWait", description="what makes a thought go on")
    end: str = Field("\n####", description="what ends the thought; the answer is what follows")
    answer_tokens: int = Field(32, gt=0, description="longest answer behind it")


class Solve(Settings):
    """Settings of `solve`."""

    data: tuple[str, ...] = Field(
        description="files of problems: `prompt` (or `question`), and `answer` with its number"
    )
    model: str = Field(description="transformers folder of the model that answers")
    outcome: str | None = Field(None, description="folder of a reward model for whole answers (trainer: reward)")
    process: str | None = Field(None, description="folder of a reward model for steps (learn: process)")
    draw: Draw = Field(Draw(temperature=1.0, samples=8), description="how samples are drawn")  # type: ignore[call-arg]
    step_end: str = Field("\n", min_length=1, description="what ends a step")
    beams: int = Field(0, ge=0, description="solutions that a search keeps; 0: no search. It needs `process`")
    width: int = Field(4, gt=0, description="next steps that are drawn for each")
    most_steps: int = Field(16, gt=0, description="longest solution of the search, in steps")
    step_tokens: int = Field(64, gt=0, description="longest step, in tokens")
    budgets: tuple[Budget, ...] = Field((), description="thoughts of forced length, each a line of the report")
    workers: int = Field(2, gt=0, description="processes that answer at a time")
    chunk: int = Field(16, gt=0, description="problems per task of a process")


def solve(settings: Solve, out: str) -> list[Line]:
    """Accuracy and tokens of every way that the settings name; OUT/solutions.jsonl. A repeated call goes on.

    Raises DataError for a problem without a prompt or a number to compare with.
    """
    from trainers.answers import read_examples

    if settings.beams and settings.process is None:
        raise RecipeError("solve: beams: a search over steps is guided by a reward model of steps; give process")
    problems = []
    for path in settings.data:
        for number, row in enumerate(read_examples(path), 1):
            prompt = row.get("prompt") or row.get("question")
            if not prompt or last_number(str(row.get("answer", ""))) is None:
                raise DataError(f"{path}, example {number}: a problem has a `prompt` and an `answer` with a number")
            problems.append({"prompt": prompt, "answer": str(row["answer"])})
    if not problems:
        raise DataError(f"{', '.join(settings.data)}: holds no problem")
    top = Path(out)
    plain = settings.model_dump(mode="json")
    same_loop(top, plain)
    rows = spread(
        solved, settings.model, problems, plain, top / "parts", workers=settings.workers, chunk=settings.chunk
    )
    samples = [{**problem, **row} for problem, row in zip(problems, rows, strict=True)]
    write_jsonl(top / "solutions.jsonl", samples)
    methods = ["first", "majority", "oracle"]
    methods += ["outcome", "weighted"] if settings.outcome else []
    methods += ["process_min", "process_product", "process_last"] if settings.process else []
    most = settings.draw.samples
    ns = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    lines = against_n([candidates_of(row) for row in samples], methods, ns)
    more = ["beam"] * bool(settings.beams) + [f"budget {budget.least}-{budget.most}" for budget in settings.budgets]
    for name in more:
        found = [row["more"][name] for row in rows]
        right = [_right(one["text"], problem["answer"]) for one, problem in zip(found, problems, strict=True)]
        tokens = sum(one["tokens"] for one in found) / len(found)
        lines.append(
            Line(name, settings.beams * settings.width if name == "beam" else 1, sum(right) / len(right), tokens)
        )
    return lines


def _right(text: str, answer: str) -> bool:
    found, expected = last_number(text), last_number(answer)
    return found is not None and expected is not None and abs(found - expected) < 1e-6


def solved(folder: str, problems: Sequence[Mapping[str, Any]], raw: Mapping[str, Any]) -> list[Row]:
    """For `spread`: solutions with tokens, scores and steps, and `more` by name: {text, tokens}."""
    from trainers.feedback.local import open_model

    settings, local = Solve(**raw), open_model(folder)
    written = local.write([as_chat(problem["prompt"]) for problem in problems], settings.draw)
    rows = []
    for problem, texts in zip(problems, written, strict=True):
        chat = as_chat(problem["prompt"])
        row: Row = {"solutions": texts, "tokens": [len(local.ids(text)) for text in texts], "more": {}}
        if settings.outcome:
            row["scores"] = [one[0] for one in judged(settings.outcome, chat, texts)]
        if settings.process:
            row["steps"] = judged(settings.process, chat, texts, [steps_of(t, settings.step_end) for t in texts])
        if settings.beams:
            row["more"]["beam"] = searched(local, chat, settings)
        for budget in settings.budgets:
            row["more"][f"budget {budget.least}-{budget.most}"] = thought(local, chat, budget, settings.draw)
        rows.append(row)
    return rows


def steps_of(text: str, end: str) -> list[str]:
    """The steps of a solution, without what ends them.

    >>> steps_of("2 + 2 = 4\\n\\nso 4\\n", "\\n")
    ['2 + 2 = 4', 'so 4']
    """
    return [step.strip() for step in text.split(end) if step.strip()]


def judged(
    folder: str, chat: Any, texts: Sequence[str], steps: Sequence[Sequence[str]] | None = None
) -> list[list[float]]:
    """Per text, the probability that each of its steps is right: σ of the reward model's value at the step's end.

    Without steps: of the whole answer, at its last token.
    """
    import torch

    from trainers.batch import Rows, collate
    from trainers.roles import call

    encoder, reward, device = _reward(folder)
    parts = steps if steps is not None else [()] * len(texts)
    encoded = [encoder(chat, text, [(step, 1) for step in some]) for text, some in zip(texts, parts, strict=True)]
    ids = np.zeros((len(encoded), max(len(one.ids) for one in encoded)), np.int64)
    for row, one in zip(ids, encoded, strict=True):
        row[: len(one.ids)] = one.ids
    batch = collate(Rows(ids, [np.array([len(one.ids)]) for one in encoded], None))
    with torch.no_grad():
        values = call(reward, batch.to(device), "values").float().sigmoid().cpu()
    if steps is None:
        return [[float(values[i, len(one.ids) - 1])] for i, one in enumerate(encoded)]
    return [
        [float(values[i, at]) for at, label in enumerate(one.step_labels) if label] for i, one in enumerate(encoded)
    ]


@functools.lru_cache(maxsize=2)
def _reward(folder: str) -> tuple[Any, Any, Any]:
    import torch

    from trainers.answers import Encoder
    from trainers.model import load_tokenizer
    from trainers.reward import load_reward

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reward = load_reward(folder).to(device).eval().requires_grad_(False)
    reward.attention = "sdpa"
    return Encoder(load_tokenizer(folder)), reward, device


def sampling_of(draw: Draw, tokens: int, stop: tuple[str, ...], samples: int = 1) -> Any:
    """How parts of a solution are drawn: like whole ones, but for length, end and number."""
    from trainers.rollout import Sampling

    return Sampling(**draw.model_dump() | {"max_tokens": tokens, "stop": stop, "samples": samples})


def searched(local: Any, chat: Any, settings: Solve) -> Row:
    """The best solution of a beam search, and the tokens of all steps that were drawn for it."""
    assert settings.process is not None
    folder, before, spent = settings.process, local.render(chat), 0

    def extend(solutions: Sequence[tuple[str, ...]], width: int) -> list[list[tuple[str, bool]]]:
        nonlocal spent
        sampling = sampling_of(settings.draw, settings.step_tokens, (settings.step_end,), width)
        ids = [local.ids(before + "".join(steps)) for steps in solutions]
        most = positions(local.lm.config) - settings.step_tokens
        room = [i for i, one in enumerate(ids) if len(one) <= most]
        found: list[list[tuple[str, bool]]] = [[] if i in room else [("", True)] for i in range(len(ids))]
        names = [int(key_of(chat, list(solutions[i]))[:12], 16) for i in room]
        for answer in local.rollouts.generate([ids[i] for i in room], sampling, names):
            spent += len(answer.tokens)
            text = local.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            found[room[answer.prompt]].append((text, settings.step_end not in text))
        return found

    def score(solutions: Sequence[tuple[str, ...]]) -> list[float]:
        texts = ["".join(steps) for steps in solutions]
        steps = [steps_of(text, settings.step_end) for text in texts]
        return [one[-1] if one else 0.0 for one in judged(folder, chat, texts, steps)]

    best = beam_search(extend, score, beams=settings.beams, width=settings.width, most_steps=settings.most_steps)
    return {"text": "".join(best[0].steps), "tokens": spent}


def thought(local: Any, chat: Any, budget: Budget, draw: Draw) -> Row:
    """A thought of forced length with the answer behind it, and the tokens of both."""
    before = local.render(chat)

    def write(text: str, room: int, stop: tuple[str, ...] = (budget.end,)) -> tuple[str, int]:
        sampling = sampling_of(draw, room, stop)
        (answer,) = local.rollouts.generate([local.ids(text)], sampling, [int(key_of(text)[:12], 16)])
        said = local.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return said.partition(budget.end)[0] if stop else said, len(answer.tokens)

    thinking, spent = force_budget(
        write, before, least=budget.least, most=budget.most, wait=budget.wait, end=budget.end
    )
    answer, more = write(before + thinking, budget.answer_tokens, ())
    return {"text": thinking + answer, "tokens": spent + more}
