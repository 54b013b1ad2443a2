"""What an answer is worth, by rules: right numbers, mathematics, passed tests, format, length; summed by weights.

Every rule is a function of the prompt's record (its line of the prompts file) and the answer's text, and of settings
that the recipe gives beside its weight. `rewards: {number: 1.0, format: {weight: 0.2, pattern: "…"}}`. A function whose
first parameter is named `records` is given all records and answers at once, as lists: a model that judges reads them
together.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import DataError, RecipeError, nearest
from trainers import cage
from trainers import mathematics as mathematics_apart

Record = Mapping[str, Any]
RULES = ("number", "mathematics", "passes", "format", "length")
"""The functions of this file; others are named `module:function`."""


class Rule(Protocol):
    """A reward."""

    def __call__(self, record: Record, answer: str, **settings: Any) -> float: ...


# ---- rules -------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def last_number(text: str) -> float | None:
    """The number that a text ends with: the one behind its last `####`, in its last `\\boxed{}`, or its last one.

    >>> last_number("4 + 4 = 8, so\\n#### 1,200."), last_number("it is $-3/4$"), last_number("none")
    (1200.0, -0.75, None)
    """
    marked = text.rpartition("####")[2] if "####" in text else ""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    found = _NUMBER.findall(marked)[:1]
    found = found or (_NUMBER.findall(boxed[-1])[-1:] if boxed else []) or _NUMBER.findall(text)[-1:]
    if not found:
        return None
    top, _, bottom = found[0].replace(",", "").partition("/")
    if bottom and not float(bottom):
        return None
    return float(top) / (float(bottom) if bottom else 1.0)


def number(record: Record, answer: str, *, key: str = "answer", tolerance: float = 1e-6) -> float:
    """1 when the answer's number is that of record[key] (GSM8K solutions with `####` as they are), else 0."""
    expected, found = last_number(str(record[key])), last_number(answer)
    if expected is None:
        raise RecipeError(f"rewards: number: {key}: {record[key]!r} of a prompt holds no number")
    return float(found is not None and abs(found - expected) <= tolerance * max(1.0, abs(expected)))


def mathematics(
    records: Sequence[Record], answers: Sequence[str], *, key: str = "answer", seconds: float = 3.0
) -> list[float]:
    """1 when the answer is mathematically equal to record[key] by the package math-verify (extra `math`), else 0.

    An answer that takes longer than `seconds` gets 0: see `trainers.mathematics`.
    """
    pairs = [(str(record[key]), answer) for record, answer in zip(records, answers, strict=True)]
    return [float(same) for same in mathematics_apart.equal(pairs, seconds)]


def format(_record: Record, answer: str, *, pattern: str) -> float:
    """1 when the whole answer, white space around it aside, matches the regular expression, else 0."""
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def length(_record: Record, answer: str, *, most: int, scale: int = 100) -> float:
    """0 up to `most` characters, then falling by 1 per `scale` characters down to −1 (Yu et al. 2025, eq. 13)."""
    return -min(1.0, max(0.0, (len(answer) - most) / scale))


_FENCE = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)


def passes(record: Record, answer: str, *, key: str = "tests", seconds: float = 5.0, memory_mib: int = 512) -> float:
    """1 when the answer's Python (its last fenced block, or all of it) passes the code in record[key], else 0.

    It runs in a process of its own with bounds: see `trainers.cage.run`.
    """
    blocks = _FENCE.findall(answer)
    program = f"{blocks[-1] if blocks else answer}\n\n{record[key]}"
    return float(cage.run(program, seconds=seconds, memory_bytes=memory_mib << 20).passed)


# ---- their sum ---------------------------------------------------------------------------------------------------


class Scorer:
    """The weighted sum of rules."""

    def __init__(self, rewards: Mapping[str, Any]):
        """name → weight, or name → {weight: …, settings of the rule}. Raises RecipeError for what no rule takes."""
        self.parts: list[tuple[str, Rule, float, dict[str, Any]]] = []
        for name, given in rewards.items():
            settings = dict(given) if isinstance(given, Mapping) else {"weight": given}
            weight = float(settings.pop("weight", 1.0))
            rule = _rule(name)
            known = inspect.signature(rule).parameters
            for setting in settings:
                if setting not in known:
                    raise RecipeError(f"rewards: {name} has no setting '{setting}'{nearest(setting, list(known))}")
            for setting, parameter in list(known.items())[2:]:
                required = parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty
                if required and setting not in settings:
                    raise RecipeError(f"rewards: {name} needs the setting '{setting}'")
            self.parts.append((name, rule, weight, settings))

    def __call__(self, record: Record, answer: str) -> dict[str, float]:
        """The value of every rule by name, unweighted."""
        return self.all([record], [answer])[0]

    def all(self, records: Sequence[Record], answers: Sequence[str]) -> list[dict[str, float]]:
        """The same for many answers."""
        columns: dict[str, list[float]] = {}
        for name, rule, _, settings in self.parts:
            if _takes_all(rule):
                columns[name] = list(rule(records, answers, **settings))  # type: ignore[arg-type,call-overload]
            else:
                columns[name] = [rule(r, a, **settings) for r, a in zip(records, answers, strict=True)]
            _check(name, columns[name], records, answers)
        return [{name: values[i] for name, values in columns.items()} for i in range(len(answers))]

    def judges(self) -> list[str]:
        """Folders of models that rules ask, by their setting `judge`: each is in memory once, in float32."""
        asked = {str(settings["judge"]) for _, _, _, settings in self.parts if "judge" in settings}
        return sorted(folder for folder in asked if Path(folder).is_dir())

    def total(self, values: Mapping[str, float]) -> float:
        """Σ weight · value."""
        return sum(weight * values[name] for name, _, weight, _ in self.parts)


def _check(name: str, values: Sequence[Any], records: Sequence[Record], answers: Sequence[str]) -> None:
    """One such value would make every weight of the model NaN. Raises DataError."""
    if len(values) != len(answers):
        raise DataError(f"rewards: {name} gave {len(values)} values for {len(answers)} answers")
    for value, record, answer in zip(values, records, answers, strict=True):
        if not math.isfinite(value):
            raise DataError(f"rewards: {name} is {value} for the prompt {record.get('prompt')!r}, answer {answer!r}")


def _takes_all(rule: Rule) -> bool:
    return next(iter(inspect.signature(rule).parameters)) == "records"


def _rule(name: str) -> Rule:
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            return getattr(import_module(module), function)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"rewards: {name}: {error}") from error
    if name not in RULES:
        raise RecipeError(f"rewards: no rule named '{name}'{nearest(name, RULES)}; or give module:function")
    if name == "mathematics":
        mathematics_apart.needed()
    return globals()[name]  # type: ignore[no-any-return]
