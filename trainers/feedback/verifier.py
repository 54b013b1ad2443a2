"""A small outcome verifier for worked sums: is this solution likely right? Learned from right and spoilt solutions.

It looks at what can be checked without knowing the answer: whether the stated sums hold, where their numbers come
from, and which numbers of the problem are used. Wrong solutions to learn from are made of right ones by the errors that
models make: another operand, another operation, a slip in a result, a missing or a repeated last step.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError

Array = NDArray[np.float64]
SUM = re.compile(r"<<([^<>=]{1,80})=([^<>]{1,30})>>")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip
WORDS = {"half": 2, "twice": 2, "double": 2, "pair": 2, "dozen": 12, "triple": 3, "third": 3, "quarter": 4, "week": 7}
WORDS |= {"year": 12, "hour": 60, "minute": 60, "day": 24, "percent": 100, "%": 100}
WORDS |= {
    w: i for i, w in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
FEATURES = (
    "right sums", "a wrong sum", "no sum", "numbers from nowhere", "problem's numbers used", "results used again",
    "answer is last result", "answer is whole", "answer below 0", "a result below 0", "a result not whole",
    "same sum twice", "last sum uses problem", "sums", "sums squared", "sums less numbers", "answer in problem",
    "biggest number is last", "log answer",
)  # fmt: skip


def value_of(expression: str) -> float | None:
    """A sum of numbers with + - * / and brackets, by its syntax tree; None for anything else.

    >>> value_of("16-3")
    13.0
    """
    text = expression.replace(",", "").replace("$", "").replace("x", "*").replace("%", "/100").strip()
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError(ast.dump(node))


def numbers(text: str) -> list[float]:
    """All numbers in a text, signs left out."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def known_numbers(question: str) -> set[float]:
    """The numbers that a problem gives, words such as `dozen` and `half` included."""
    lower = question.lower()
    return set(numbers(question)) | {float(value) for word, value in WORDS.items() if word in lower}


def sums_of(solution: str) -> list[tuple[str, float | None]]:
    """The sums of a worked solution, <<expression=result>>."""
    return [(left, value_of(right)) for left, right in SUM.findall(solution)]


def answer_of(solution: str) -> float | None:
    """The number behind #### or `A:`, else the last one."""
    found = re.split(r"####|\bA:", solution)[-1] if re.search(r"####|\bA:", solution) else solution
    said = re.findall(r"-?\d[\d,]*(?:\.\d+)?", found) or re.findall(r"-?\d[\d,]*(?:\.\d+)?", solution)
    return float(said[-1].replace(",", "")) if said else None


def features(question: str, solution: str) -> Array:
    """float64 [len(FEATURES)] of one solution."""
    given, sums, answer = known_numbers(question), sums_of(solution), answer_of(solution)
    in_question = set(numbers(question))
    results: list[float] = []
    right, nowhere, operands, again, last_given = 0, 0, 0, set(), 0
    used: set[float] = set()
    for expression, result in sums:
        made = value_of(expression)
        right += made is not None and result is not None and abs(made - result) < 0.01 * max(1.0, abs(made))
        here = numbers(expression)
        operands += len(here)
        nowhere += sum(n not in given and n not in results and n not in (1.0, 100.0) for n in here)
        again |= {n for n in here if n in results}
        used |= set(here) & in_question
        last_given = sum(n in given for n in here)
        results += [] if result is None else [result]
    count = len(sums)
    seen = len({(left, result) for left, result in sums})
    final = answer if answer is not None else 0.0
    used_up = len(again) / max(1, len(set(results[:-1])))
    return np.array([
        right / max(1, count), float(right < count), float(count == 0), nowhere / max(1, operands),
        len(used) / max(1, len(in_question)), used_up, float(bool(results) and abs(results[-1] - final) < 0.01),
        float(final == int(final)), float(answer is None or final < 0), float(any(r < 0 for r in results)),
        float(any(r != int(r) for r in results)), float(seen < count), float(last_given > 0),
        min(count, 10) / 10, (min(count, 10) / 10) ** 2, (count - len(in_question)) / 10,
        float(final in in_question), float(bool(in_question) and final > max(in_question)),
        np.log1p(abs(final)) / 10,
    ])  # fmt: skip


def spoil(solution: str, rng: np.random.Generator, question: str = "") -> str:
    """A right solution with one error in it; what follows is not made to agree with it, except a slip's results."""
    found = list(SUM.finditer(solution))
    if not found:
        return re.sub(r"####.*", f"#### {rng.integers(1, 200)}", solution)
    at = int(rng.integers(len(found)))
    kind = rng.integers(5)
    expression, result = found[at][1], found[at][2]
    if kind == 0 and len(found) > 1:  # stops one step too early
        lines = [line for line in solution.split("\n") if "####" not in line]
        while lines and not SUM.search(lines[-1]):
            lines.pop()
        kept = "\n".join(lines[:-1])
        earlier = SUM.findall(kept)
        return f"{kept}\n#### {earlier[-1][1] if earlier else result}"
    changed = expression
    if kind == 1:  # another operation
        signs = [i for i, c in enumerate(expression) if c in "+-*/" and i]
        if signs:
            place = signs[int(rng.integers(len(signs)))]
            others = [c for c in "+-*/" if c != expression[place]]
            changed = expression[:place] + others[int(rng.integers(3))] + expression[place + 1 :]
    elif kind in (2, 3):  # another number, of the problem or near by
        places = list(NUMBER.finditer(expression))
        pool = [f"{n:g}" for n in numbers(question)]
        if places:
            number = places[int(rng.integers(len(places)))]
            near = f"{numbers(number[0])[0] + rng.integers(1, 10):g}"
            other = pool[int(rng.integers(len(pool)))] if pool and kind == 2 else near
            changed = expression[: number.start()] + other + expression[number.end() :]
    made = value_of(changed)
    if kind == 4 or made is None or changed == expression:  # a slip in the result
        said = value_of(result)
        made, changed = (said or 0.0) + float(rng.choice([-10, -2, -1, 1, 2, 10])), expression
    tail = solution[found[at].end() :]
    new = f"{made:g}"
    # the wrong result is believed from here on: later sums are worked out with it
    head = f"{solution[: found[at].start()]}<<{changed}={new}>>"
    return head + _carried(tail, {result: new})


def _carried(tail: str, replaced: dict[str, str]) -> str:
    def again(match: re.Match[str]) -> str:
        expression = NUMBER.sub(lambda n: replaced.get(n[0], n[0]), match[1])
        made = value_of(expression)
        if expression == match[1] or made is None:
            return match[0]
        replaced[match[2]] = f"{made:g}"
        return f"<<{expression}={made:g}>>"

    body, mark, final = tail.rpartition("####")
    body = SUM.sub(again, body)
    return body + mark + NUMBER.sub(lambda n: replaced.get(n[0], n[0]), final)


@dataclass(frozen=True)
class Verifier:
    """Logistic regression on the features."""

    weights: Array
    bias: float
    mean: Array
    scale: Array

    def __call__(self, question: str, solution: str) -> float:
        """The probability that the solution is right, by the spoilt ones it has learned from."""
        z = float((features(question, solution) - self.mean) / self.scale @ self.weights + self.bias)
        return float(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def fit(questions: Sequence[str], solutions: Sequence[str], right: Sequence[bool], *, ridge: float = 1.0) -> Verifier:
    """Newton's method on −Σ log p + ridge/2 · |w|²."""
    if len(set(right)) < 2:
        raise DataError("a verifier learns from right and from wrong solutions; only one kind is here")
    x = np.stack([features(q, s) for q, s in zip(questions, solutions, strict=True)])
    y = np.array(right, np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-9
    z = np.hstack([(x - mean) / scale, np.ones((len(x), 1))])
    held = np.diag([ridge] * x.shape[1] + [1e-9])
    w = np.zeros(z.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        step = np.linalg.solve(z.T @ (z * (p * (1 - p))[:, None]) + held, z.T @ (p - y) + held @ w)
        w -= step
        if np.abs(step).max() < 1e-9:
            break
    return Verifier(w[:-1], float(w[-1]), mean, scale)


def from_right_solutions(questions: Sequence[str], solutions: Sequence[str], *, seed: int = 0) -> Verifier:
    """A verifier from right solutions alone: each is set against a spoilt copy of itself."""
    rng = np.random.default_rng(seed)
    spoilt = [spoil(solution, rng, question) for question, solution in zip(questions, solutions, strict=True)]
    both = [*solutions, *spoilt]
    return fit([*questions, *questions], both, [True] * len(solutions) + [False] * len(spoilt))
