"""One answer out of many: votes, verifiers of outcomes and of steps, and what each gains with more samples.

Imports no torch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.errors import DataError

Aggregate = Literal["min", "product", "last", "mean"]
METHODS = ("first", "majority", "outcome", "weighted", "process_min", "process_product", "process_last", "oracle")


@dataclass(frozen=True)
class Candidates:
    """The sampled answers to one problem, in the order they were drawn."""

    answers: list[str | None]
    """What is compared in a vote, such as the last number; None where there is none."""
    right: list[bool] | None = None
    scores: list[float] | None = None
    """By an outcome verifier, higher is better; for `weighted` they are weights ≥ 0, such as probabilities."""
    steps: list[list[float]] | None = None
    """Per answer, the probability that each step is right, by a process verifier."""
    tokens: list[int] | None = None

    def taken(self, which: Sequence[int]) -> Candidates:
        """Only these answers."""

        def some(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[i] for i in which]

        return Candidates(
            [self.answers[i] for i in which], *(some(v) for v in (self.right, self.scores, self.steps, self.tokens))
        )


def majority(answers: Sequence[str | None]) -> int:
    """The first answer with the most frequent value; of equal ones the earliest. Wang et al. 2023, self-consistency.

    An answer without a value has no vote; when none has one, the first.
    """
    return weighted_majority(answers, [1.0] * len(answers))


def weighted_majority(answers: Sequence[str | None], weights: Sequence[float]) -> int:
    """The best-weighted answer among those with the value of most weight. Li et al. 2023 (DiVeRSe), eq. 4."""
    totals: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if not weight >= 0:  # NaN too
            raise DataError(f"a weight of {weight:g} in a vote: weights are probabilities or other numbers >= 0")
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    if not totals:
        return best(weights)
    winner = max(totals, key=lambda value: totals[value])
    return max((i for i, answer in enumerate(answers) if answer == winner), key=lambda i: (weights[i], -i))


def best(scores: Sequence[float]) -> int:
    """The highest score, of equal ones the earliest. Cobbe et al. 2021, section 4.1; NaN never wins."""
    return max(range(len(scores)), key=lambda i: (-math.inf if math.isnan(scores[i]) else scores[i], -i))


def aggregate(steps: Sequence[float], how: Aggregate) -> float:
    """One score from those of the steps. Lightman et al. 2023, appendix F (product, min); last: as an outcome.

    An answer without steps gets 0, one with a step that is NaN gets −∞.
    """
    if not steps:
        return 0.0
    if any(math.isnan(step) for step in steps):
        return -math.inf
    if how == "min":
        return min(steps)
    if how == "product":
        return math.prod(steps)
    return steps[-1] if how == "last" else sum(steps) / len(steps)


def choose(candidates: Candidates, method: str) -> int:
    """The index of the answer that a method of METHODS takes. Raises DataError when it lacks what it needs."""
    count = len(candidates.answers)
    if not count:
        raise DataError("no answer to choose from")
    if method == "first":
        return 0
    if method == "majority":
        return majority(candidates.answers)
    if method == "outcome":
        return best(_needed(candidates.scores, method, "scores"))
    if method == "weighted":
        return weighted_majority(candidates.answers, _needed(candidates.scores, method, "scores"))
    if method.startswith("process_"):
        how: Any = method.removeprefix("process_")
        return best([aggregate(steps, how) for steps in _needed(candidates.steps, method, "steps")])
    if method == "oracle":
        return best([float(right) for right in _needed(candidates.right, method, "right")])
    raise DataError(f"no method named '{method}'; known are {', '.join(METHODS)}")


def _needed(values: Any, method: str, name: str) -> Any:
    if values is None:
        raise DataError(f"method {method} needs `{name}` of every answer")
    return values


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k), unbiased. Chen et al. 2021, eq. 1."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise DataError(f"pass@{k} of {samples} samples with {right} right: needs 0 <= right <= samples, k <= samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Line:
    """How often a method is right with n answers per problem."""

    method: str
    n: int
    accuracy: float
    tokens: float | None
    """Mean tokens per problem spent on the n answers."""


def against_n(
    problems: Sequence[Candidates], methods: Sequence[str], ns: Sequence[int], *, draws: int = 64, seed: int = 0
) -> list[Line]:
    """Accuracy of each method with n of the answers, the mean over subsets: all of them, or `draws` drawn ones.

    Every method sees the same subsets, each from its first answer on and from its last on: ties go to the earlier one,
    and where several models took turns an order must not favour one of them. Problems with fewer than n answers are
    refused.
    """
    found = []
    for n in ns:
        rights = dict.fromkeys(methods, 0.0)
        tokens, counted = 0.0, all(problem.tokens is not None for problem in problems)
        for number, problem in enumerate(problems):
            if problem.right is None or len(problem.answers) < n:
                raise DataError(f"problem {number}: {len(problem.answers)} judged answers, {n} are asked for")
            subsets = _subsets(len(problem.answers), n, draws, seed + number)
            subsets += [which[::-1] for which in subsets] if n > 1 else []
            for which in subsets:
                part = problem.taken(which)
                assert part.right is not None
                for method in methods:
                    rights[method] += part.right[choose(part, method)] / len(subsets)
                tokens += sum(part.tokens or ()) / len(subsets)
        for method in methods:
            share = rights[method] / max(1, len(problems))
            found.append(Line(method, n, share, tokens / max(1, len(problems)) if counted else None))
    return found


def _subsets(count: int, n: int, draws: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(count, n) <= draws:
        return list(itertools.combinations(range(count), n))
    rng = np.random.default_rng(seed)
    return [tuple(sorted(rng.choice(count, n, replace=False).tolist())) for _ in range(draws)]


def told(lines: Sequence[Line]) -> Iterator[str]:
    """The report as text: one line per method of METHODS and one column per n, then the other ways with their cost."""
    grid = [line for line in lines if line.method in METHODS]
    ns = sorted({line.n for line in grid})
    yield f"{'answers per problem':<20}" + "".join(f"{n:>10}" for n in ns)
    for method in dict.fromkeys(line.method for line in grid):
        row = {line.n: line for line in grid if line.method == method}
        yield f"{method:<20}" + "".join(f"{100 * row[n].accuracy:>9.2f}%" for n in ns)
    spent = {line.n: line.tokens for line in grid}
    if all(value is not None for value in spent.values()):
        yield f"{'tokens per problem':<20}" + "".join(f"{spent[n]:>10.1f}" for n in ns)
    for line in lines:
        if line.method not in METHODS:
            yield f"{line.method:<20}{100 * line.accuracy:>9.2f}% for {line.tokens:.1f} tokens per problem"


def candidates_of(raw: Mapping[str, Any]) -> Candidates:
    """One problem of a JSONL file: `solutions` (texts) or `answers`, with `right`, `scores`, `steps`, `tokens`.

    From solutions the last number is the answer, and `answer` (the reference, as in GSM8K) says which are right.
    Raises DataError on columns of unequal lengths.
    """
    from trainers.rewards import last_number

    texts = raw.get("solutions")
    answers = raw.get("answers")
    right = raw.get("right")
    if answers is None and texts is not None:
        numbers = [last_number(text) for text in texts]
        answers = [None if number is None else f"{number:g}" for number in numbers]
        reference = last_number(str(raw["answer"])) if right is None and "answer" in raw else None
        if reference is not None:
            right = [number is not None and abs(number - reference) < 1e-6 for number in numbers]
    if answers is None:
        raise DataError(f"expected `solutions` or `answers`, found {sorted(raw)}")
    more = {"right": right, **{name: raw.get(name) for name in ("scores", "steps", "tokens")}}
    for name, values in more.items():
        if values is not None and len(values) != len(answers):
            raise DataError(f"{len(answers)} answers, {len(values)} {name}")
    return Candidates([None if a is None else str(a) for a in answers], **more)


# ---- search over steps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beam:
    """A solution that may still grow."""

    steps: tuple[str, ...]
    scores: tuple[float, ...]
    finished: bool


def beam_search(
    extend: Callable[[Sequence[tuple[str, ...]], int], list[list[tuple[str, bool]]]],
    score: Callable[[Sequence[tuple[str, ...]]], list[float]],
    *,
    beams: int = 4,
    width: int = 4,
    most_steps: int = 16,
    how: Aggregate = "last",
) -> list[Beam]:
    """Solutions grown step by step, of which the `beams` best by step reward go on. Snell et al. 2024, section 5.2.

    `extend(solutions, width)` gives each unfinished solution `width` next steps with whether they end it; `score`
    gives the reward of each solution's last step. Equal solutions are kept once. Returns `beams` solutions or fewer,
    best first; those cut at `most_steps` are not finished.
    """
    alive = [Beam((), (), finished=False)]
    for _ in range(most_steps):
        growing = [beam for beam in alive if not beam.finished]
        if not growing:
            break
        made: dict[tuple[str, ...], Beam] = {beam.steps: beam for beam in alive if beam.finished}
        grown = extend([beam.steps for beam in growing], width if len(alive) > 1 else beams * width)
        fresh: dict[tuple[str, ...], tuple[Beam, bool]] = {}
        for beam, nexts in zip(growing, grown, strict=True):
            for step, ends in nexts:
                fresh.setdefault((*beam.steps, step), (beam, ends))
        rewards = score(list(fresh))
        for (steps, (beam, ends)), reward in zip(fresh.items(), rewards, strict=True):
            made[steps] = Beam(steps, (*beam.scores, reward), ends)
        alive = heapq.nlargest(beams, made.values(), key=lambda beam: aggregate(beam.scores, how))
    return alive


def force_budget(
    write: Callable[[str, int], tuple[str, int]],
    prompt: str,
    *,
    least: int,
    most: int,
    wait: str = "\nWait",
    end: str,
) -> tuple[str, int]:
    """Make a model think for `least` to `most` tokens. Muennighoff et al. 2025 (s1), section 3.1.

    `write(text, room)` continues the text by at most `room` tokens or until `end` (left out), and says how many it
    wrote. Too short a thought gets `wait` and goes on, too long a one is closed with `end`. Returns the thought with
    `end`, and the tokens written.
    """
    thought, spent = write(prompt, most)
    while spent < min(least, most):
        more, count = write(prompt + thought + wait, most - spent)
        if not count:
            break
        thought, spent = thought + wait + more, spent + count
    return thought + end, spent
