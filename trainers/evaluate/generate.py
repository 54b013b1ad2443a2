"""Tasks by generation: arithmetic word problems whose last number counts, and programs that must pass their tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cluster.errors import DataError
from cluster.settings import make
from trainers import cage, mathematics
from trainers.evaluate.task import Task, shots_for
from trainers.ranks import Ranks
from trainers.rewards import last_number
from trainers.rollout import Rollouts, Sampling

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ")
"""Where a function body that a base model writes is over (Chen et al. 2021, appendix)."""
NEXT = {"number": "\nQuestion:", "mathematics": "\nProblem:"}
"""Where a base model has answered a problem and invents the next one."""


def solved(completion: str, reference: str) -> bool:
    """Whether a completion ends with the reference's number. Raises DataError when the reference has none."""
    expected = last_number(reference)
    if expected is None:
        raise DataError(f"reference answer without a number: {reference[:80]!r}")
    got = last_number(completion.split(NEXT["number"])[0])
    return got is not None and abs(got - expected) < 1e-6


def human_eval_program(item: dict[str, str], completion: str) -> str:
    """The program that decides one HumanEval item: prompt, completion up to its end, and the item's tests."""
    ends = [at for at in (completion.find(stop) for stop in STOPS) if at >= 0]
    body = completion[: min(ends)] if ends else completion
    return f"{item['prompt']}{body}\n\n{item['test']}\n\ncheck({item['entry_point']})\n"


def pass_at(k: int, drawn: int, passed: int) -> float:
    """The chance that one of k answers passes, without bias from `drawn` answers of which `passed` did.

    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    >>> pass_at(1, 4, 1), pass_at(2, 4, 1), pass_at(4, 4, 1)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - math.comb(drawn - passed, k) / math.comb(drawn, k)


def question(task: Task, number: int, shots: int) -> list[str]:
    """The pieces of an item's prompt: worked examples, then the item itself; a long prompt loses the first ones."""
    item, worked = task.test[number], shots_for(task, number, shots)
    if task.kind == "program":
        return [f"{one['prompt']}{one.get('canonical_solution', '')}\n\n" for one in worked] + [item["prompt"]]
    if task.kind == "mathematics":
        pieces = [f"Problem: {one['problem']}\nSolution: {one['solution']}\n\n" for one in worked]
        return [*pieces, f"Problem: {item['problem']}\nSolution:"]
    solutions = [f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in worked]
    return [*solutions, f"Question: {item['question']}\nAnswer:"]


def asked(task: Task, tokenizer: Any, number: int, *, shots: int, room: int) -> list[int]:
    """An item's prompt as tokens: within `room`, without the first worked examples, then without its own beginning."""
    pieces = question(task, number, shots)
    while True:
        ids: list[int] = tokenizer("".join(pieces), add_special_tokens=False).input_ids
        if len(ids) <= room or len(pieces) == 1:
            return ids[-room:]
        pieces = pieces[1:]


def check_room(tasks: Sequence[Task], *, tokens: int, positions: int) -> None:
    """Raises DataError when no prompt would fit beside `tokens` new ones, RecipeError when a package is missing."""
    if any(task.kind == "mathematics" for task in tasks):
        mathematics.needed()
    if tasks and tokens >= positions:
        raise DataError(
            f"task {tasks[0].name}: answers of {tokens} tokens leave no room for a prompt in the model's {positions} "
            "positions; take fewer (task_tokens, --tokens)"
        )


def measure(
    sampler: Rollouts,
    tasks: Sequence[Task],
    tokenizer: Any,
    *,
    shots: int,
    tokens: int,
    positions: int,
    ranks: Ranks,
    samples: int = 1,
    temperature: float = 0.0,
) -> dict[str, float]:
    """{"TASK_solved"} of word problems, {"TASK_pass_at_1", …} of programs: the share of items, the same on every rank.

    Every rank answers its own items, up to `tokens` tokens each; greedy by default, else `samples` answers per item at
    a temperature, and also the chance that one of all of them is right ("TASK_pass_at_N"). A collective.
    """
    check_room(tasks, tokens=tokens, positions=positions)
    figures: dict[str, float] = {}
    for task in tasks:
        mine = range(ranks.rank, len(task.test), ranks.world)
        prompts = [asked(task, tokenizer, number, shots=shots, room=positions - tokens) for number in mine]
        stops = STOPS if task.kind == "program" else (NEXT[task.kind],)
        drawn = {"temperature": temperature, "samples": samples, "max_tokens": tokens, "stop": stops}
        sampling = make(Sampling, drawn, "evaluate")
        passed = dict.fromkeys(mine, 0)
        for answer in sampler.generate(prompts, sampling, list(mine)) if prompts else []:
            number = mine[answer.prompt]
            passed[number] += right(task, task.test[number], tokenizer.decode(answer.tokens, skip_special_tokens=True))
        sums = [sum(pass_at(k, samples, count) for count in passed.values()) for k in (1, samples)]
        first, every = (value / len(task.test) for value in ranks.sum([float(value) for value in sums]))
        name = "pass_at_1" if task.kind == "program" else "solved"
        figures[f"{task.name}_{name}"] = first
        if samples > 1:
            figures[f"{task.name}_pass_at_{samples}"] = every
    return figures


def right(task: Task, item: dict[str, Any], completion: str) -> bool:
    """Whether an answer solves its item."""
    if task.kind == "program":
        return cage.run(human_eval_program(item, completion)).passed
    if task.kind == "mathematics":
        return mathematics.equal([(item["solution"], completion.split(NEXT[task.kind])[0])], seconds=5.0)[0]
    return solved(completion, item["answer"])
