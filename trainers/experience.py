"""Sampled answers as rows for the trainer: one answer a row, its tensors aligned with the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from trainers.batch import IGNORE, Batch
from trainers.rollout import Answer

PLAIN = ("input_ids", "position_ids", "doc_index", "targets")


@dataclass(frozen=True, kw_only=True)
class Experience(Batch):
    """A batch of answers with what was known before the update; all [rows, width], float32, 0 where there is no target.

    Position t speaks of the token that follows it: `targets[t]`, which is IGNORE on prompts and padding.
    """

    old_log_probs: Tensor
    """By the trainer, before the first update of the iteration."""
    sampler_log_probs: Tensor
    reference_log_probs: Tensor
    advantages: Tensor
    values: Tensor
    """The critic's, before the update; 0 without a critic."""
    returns: Tensor
    """What the critic shall learn."""

    @property
    def mask(self) -> Tensor:
        """bool: the positions whose next token the policy chose."""
        return self.targets != IGNORE

    def to(self, device: torch.device) -> Experience:
        if device.type == "cpu":
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


KNOWN = ("old_log_probs", "sampler_log_probs", "reference_log_probs", "advantages", "values", "returns")


@dataclass(frozen=True)
class AnswerRows:
    """Prompts and answers of one iteration on this rank, right-padded: [answers, width]."""

    input_ids: Tensor
    position_ids: Tensor
    doc_index: Tensor
    targets: Tensor
    sampler_log_probs: Tensor

    @property
    def mask(self) -> Tensor:
        return self.targets != IGNORE

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some of the rows as a plain batch, for a forward pass."""
        at = torch.tensor(list(rows), dtype=torch.long)
        return Batch(*(getattr(self, name)[at] for name in PLAIN))

    def experience(self, rows: Sequence[int], height: int, **known: Tensor) -> Experience:
        """Some of the rows with what is known of them, and rows without a target up to `height`."""
        at = torch.tensor(list(rows), dtype=torch.long)
        blank = height - len(rows)
        width = self.input_ids.shape[1]
        plain = {name: getattr(self, name)[at] for name in PLAIN}
        empty = {
            "input_ids": torch.zeros((blank, width), dtype=torch.int64),
            "position_ids": torch.arange(width).expand(blank, -1),
            "doc_index": torch.zeros((blank, width), dtype=torch.int32),
            "targets": torch.full((blank, width), IGNORE, dtype=torch.int64),
        }
        joined: dict[str, Any] = {name: torch.cat([value, empty[name]]) for name, value in plain.items()}
        more = {"sampler_log_probs": self.sampler_log_probs, **known}
        zero = torch.zeros((blank, width))
        for name in KNOWN:
            value = more[name][at] if name in more else torch.zeros((len(rows), width))
            joined[name] = torch.cat([value.float(), zero])
        return Experience(**joined)


def rows_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answer], *, pad: int, multiple: int = 8, width: int = 0
) -> AnswerRows:
    """Each answer behind its prompt in a row of its own; targets are the policy's own tokens, the EOS included.

    The width is the longest row, or `width`, rounded up to `multiple`.
    """
    longest = max([width, *(len(prompts[a.prompt]) + len(a.tokens) for a in answers)])
    longest = -(-longest // multiple) * multiple
    shape = (len(answers), longest)
    ids, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    index, targets = torch.zeros(shape, dtype=torch.int32), torch.full(shape, IGNORE)
    sampled = torch.zeros(shape)
    for i, answer in enumerate(answers):
        prompt = list(prompts[answer.prompt])
        start, end = len(prompt), len(prompt) + len(answer.tokens)
        ids[i, :end] = torch.tensor(prompt + answer.tokens)
        positions[i, :end], positions[i, end:] = torch.arange(end), torch.arange(longest - end)
        index[i, end:] = 1
        own = torch.tensor(answer.own if answer.own is not None else [True] * len(answer.tokens))
        targets[i, start - 1 : end - 1] = torch.where(own, torch.tensor(answer.tokens), IGNORE)
        sampled[i, start - 1 : end - 1] = torch.tensor(answer.log_probs)
    return AnswerRows(ids, positions, index, targets, sampled)
