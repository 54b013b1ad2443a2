"""Answers of several turns: the policy calls a tool, reads what it says, and writes on.

What a tool says is part of the answer's text and of what the policy reads, but was not chosen by it: `Answer.own` is
False there, the rows have no target there, and every formula behaves as if these tokens were not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pydantic import Field

from cluster.errors import DataError, RecipeError, nearest
from cluster.settings import Settings
from trainers import cage
from trainers.rollout import Answer, Rollouts, Sampling

TOOLS = ("calculator", "python")
"""The tools of this file; others are named `module:function`, from the call's text to the tool's text."""


class Tool(Settings):
    """A tool and how it is called: the policy writes BEGIN call END and reads BEFORE output AFTER."""

    name: str = Field("calculator", description="calculator, python, or module:function")
    begin: str = Field("<tool>", description='where a call begins; "": with the turn')
    end: str = Field("</tool>", min_length=1, description="what ends a call and hands over to the tool")
    before: str = Field("<output>", description="what stands before the tool's output")
    after: str = Field("</output>", description="what stands behind it")
    calls: int = Field(4, gt=0, description="per answer; later ones are not answered")
    most_tokens: int = Field(128, gt=0, description="longest output with both marks; a longer one is cut")
    seconds: float = Field(5.0, gt=0, description="that a program may run (python)")
    memory_mib: int = Field(512, gt=0, description="that a program may use (python)")

    def function(self) -> Callable[[str], str]:
        """From a call's text to the tool's. Raises RecipeError for what is none."""
        if ":" in self.name:
            module, _, function = self.name.partition(":")
            try:
                return getattr(import_module(module), function)  # type: ignore[no-any-return]
            except (ImportError, AttributeError) as error:
                raise RecipeError(f"objective.tool: {self.name}: {error}") from error
        if self.name == "calculator":
            return calculator
        if self.name == "python":
            return lambda program: python(program, seconds=self.seconds, memory_bytes=self.memory_mib << 20)
        raise RecipeError(f"objective.tool: no tool named '{self.name}'{nearest(self.name, TOOLS)}; or module:function")


def calculator(call: str) -> str:
    """The value of a sum of numbers with + - * / and brackets.

    >>> calculator("(2 + 3) * 4"), calculator("1/0")
    ('20', 'error: not a sum')
    """
    from trainers.feedback.verifier import value_of

    value = value_of(call)
    return "error: not a sum" if value is None else f"{value:.10g}"


def python(program: str, *, seconds: float = 5.0, memory_bytes: int = 512 << 20) -> str:
    """What a program prints, in a process with bounds (`trainers.cage`); its error's last line where it fails."""
    ran = cage.run(program, seconds=seconds, memory_bytes=memory_bytes)
    return ran.said.strip() if ran.passed else f"{ran.said}error: {ran.why}".strip()


def holes(own: Sequence[bool]) -> int:
    """How often a tool spoke: stretches of tokens that are not the policy's own."""
    return sum(not mine and (i == 0 or own[i - 1]) for i, mine in enumerate(own))


@dataclass
class _Turns:
    """One answer as it grows."""

    prompt: int
    sample: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    finished: bool = False

    def add(self, tokens: Sequence[int], log_probs: Sequence[float] | None) -> None:
        """The policy's tokens, or without log-probabilities a tool's."""
        self.tokens += tokens
        self.log_probs += log_probs if log_probs is not None else [0.0] * len(tokens)
        self.own += [log_probs is not None] * len(tokens)


class WithTool:
    """`generate` where the policy may call a tool. `max_tokens` bounds what the policy writes in all turns together."""

    def __init__(self, rollouts: Rollouts, tokenizer: Any, tool: Tool, positions: int):
        """`positions` is the longest row that the model reads."""
        self.rollouts, self.tokenizer, self.tool, self.positions = rollouts, tokenizer, tool, positions
        self.function = tool.function()
        self.before, self.after = self._ids(tool.before), self._ids(tool.after)
        if len(self.before) + len(self.after) >= tool.most_tokens:
            raise RecipeError(f"objective.tool: most_tokens: {tool.most_tokens} has no room behind before and after")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[Answer]:
        """See `Rollouts.generate`. Each turn of an answer has a random stream of its own."""
        names = list(numbers) if numbers is not None else list(range(len(prompts)))
        self.check_fit(max(map(len, prompts), default=0), sampling)
        calling = sampling.model_copy(update={"stop": (*sampling.stop, self.tool.end)})
        answers, growing = [], []
        for first in self.rollouts.generate(prompts, calling, names):
            one = _Turns(first.prompt, first.sample, list(first.tokens), list(first.log_probs))
            one.own, one.finished = [True] * len(first.tokens), first.finished
            answers.append(one)
            growing.append((one, first.tokens))
        for turn in range(1, self.tool.calls + 1):
            growing = self._answered(growing, sampling)
            if not growing:
                break
            how = calling if turn < self.tool.calls else sampling
            how = how.model_copy(update={"samples": 1, "seed": sampling.seed + (turn << 32)})
            one_by_one = [one for one, _ in growing]
            written = self.rollouts.generate(
                [[*prompts[one.prompt], *one.tokens] for one in one_by_one], how,
                [names[one.prompt] << 16 | one.sample for one in one_by_one],
                [sampling.max_tokens - sum(one.own) for one in one_by_one],
            )  # fmt: skip
            for one, more in zip(one_by_one, written, strict=True):
                one.add(more.tokens, more.log_probs)
                one.finished = more.finished
            growing = [(one, more.tokens) for one, more in zip(one_by_one, written, strict=True)]
        return [Answer(one.prompt, one.sample, one.tokens, one.log_probs, one.finished, one.own) for one in answers]

    def check_fit(self, longest: int, sampling: Sampling) -> None:
        """Raises DataError when a prompt of so many tokens, all turns and all outputs may not fit."""
        outputs = self.tool.calls * self.tool.most_tokens
        if longest + sampling.max_tokens + outputs > self.positions:
            raise DataError(
                f"a prompt of {longest} tokens, {sampling.max_tokens} new ones and {self.tool.calls} outputs of "
                f"{self.tool.most_tokens} do not fit the model's {self.positions} positions; shorten max_tokens, "
                "tool.calls or tool.most_tokens"
            )

    def _answered(self, turns: list[tuple[_Turns, list[int]]], sampling: Sampling) -> list[tuple[_Turns, list[int]]]:
        """Those whose last turn ended with a call and may go on, with the tool's output added."""
        calls = []
        for one, last in turns:
            text = self.tokenizer.decode(last, skip_special_tokens=True)
            if self.tool.end in text and not any(stop in text for stop in sampling.stop):
                one.finished = False
                if sum(one.own) < sampling.max_tokens:
                    calls.append((one, last, text.partition(self.tool.end)[0].rpartition(self.tool.begin or "\0")[2]))
        if calls:
            with ThreadPoolExecutor(min(len(calls), os.cpu_count() or 1)) as pool:
                outputs = list(pool.map(self.function, [call for _, _, call in calls]))
            room = self.tool.most_tokens - len(self.before) - len(self.after)
            for (one, _, _), output in zip(calls, outputs, strict=True):
                one.add([*self.before, *self._ids(output)[:room], *self.after], None)
        return [(one, last) for one, last, _ in calls]
