"""Tasks by generation: arithmetic word problems whose last number counts, and programs that must pass their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cluster.errors import DataError
from trainers.rewards import last_number


def solved(completion: str, reference: str) -> bool:
    """Whether a completion ends with the reference's number. Raises DataError when the reference has none."""
    expected = last_number(reference)
    if expected is None:
        raise DataError(f"reference answer without a number: {reference[:80]!r}")
    got = last_number(completion)
    return got is not None and abs(got - expected) < 1e-6


STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ")
"""Where a function body that a base model writes is over (Chen et al. 2021, appendix)."""


def human_eval_program(item: dict[str, str], completion: str) -> str:
    """The program that decides one HumanEval item: prompt, completion up to its end, and the item's tests."""
    ends = [at for at in (completion.find(stop) for stop in STOPS) if at >= 0]
    body = completion[: min(ends)] if ends else completion
    return f"{item['prompt']}{body}\n\n{item['test']}\n\ncheck({item['entry_point']})\n"


@torch.no_grad()
def complete(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, tokens: int, temperature: float = 0.0, batch: int = 8
) -> list[str]:
    """Continuations of prompts by a transformers model, greedy at temperature 0; the prompt is not repeated."""
    out: list[str] = []
    device = next(model.parameters()).device
    limit = int(model.config.max_position_embeddings) - tokens
    if limit < 1:
        raise DataError(f"{tokens} new tokens do not fit the model's {model.config.max_position_embeddings} positions")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(prompts), batch):
        ids = [tokenizer(p, add_special_tokens=False).input_ids[-limit:] for p in prompts[start : start + batch]]
        width = max(map(len, ids))
        rows = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        made = model.generate(
            rows,
            attention_mask=seen,
            max_new_tokens=tokens,
            do_sample=temperature > 0,
            pad_token_id=pad,
            **({"temperature": temperature} if temperature > 0 else {}),
        )
        out += tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    return out


def solve_rate(
    model: Any,
    tokenizer: Any,
    train: Sequence[dict[str, str]],
    test: Sequence[dict[str, str]],
    *,
    shots: int,
    tokens: int,
) -> float:
    """Share of word problems ({"question", "answer"}, as in GSM8K) solved with `shots` worked ones in front."""
    if shots > len(train):
        raise DataError(f"{shots} shots, but only {len(train)} worked problems")
    head = "".join(f"Question: {item['question']}\nAnswer: {item['answer']}\n\n" for item in train[:shots])
    answers = complete(model, tokenizer, [f"{head}Question: {x['question']}\nAnswer:" for x in test], tokens=tokens)
    cut = [answer.split("\nQuestion:")[0] for answer in answers]
    return sum(solved(answer, item["answer"]) for answer, item in zip(cut, test, strict=True)) / max(1, len(test))
