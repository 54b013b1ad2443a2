"""`corpusmill evaluate`: an exported model on task files, by log-likelihood or by generation, as their items ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.errors import DataError, RecipeError
from trainers.architecture import longest
from trainers.attention import pick_attention
from trainers.evaluate import few_shot, generate
from trainers.evaluate.task import GENERATED, read_tasks
from trainers.model import PackedLM, load, load_tokenizer
from trainers.ranks import Ranks
from trainers.roles import Frozen
from trainers.rollout import Sampler


def evaluate(
    folder: str,
    paths: Sequence[str],
    *,
    shots: int = 0,
    limit: int = 0,
    tokens: int = 256,
    samples: int = 1,
    temperature: float | None = None,
) -> dict[str, float]:
    """{"TASK_figure": value} of a transformers folder over task files, in this process.

    `limit` items per task (0: all), `shots` worked examples before each. Answers that the model writes have up to
    `tokens` tokens: one, greedy; or `samples` at a temperature (0.8). Raises DataError for a wrong item.
    """
    if shots < 0 or limit < 0 or tokens < 1 or samples < 1:
        raise RecipeError(
            f"evaluate: shots {shots} and limit {limit} must be 0 or more, tokens {tokens} and samples {samples} 1 or "
            "more"
        )
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.8
    if samples > 1 and temperature == 0:
        raise RecipeError(f"evaluate: {samples} samples at temperature 0 are all the same; give a temperature above 0")
    from transformers.utils import logging

    logging.disable_progress_bar()
    tasks = read_tasks(paths, limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm, tokenizer = load(folder, dtype), load_tokenizer(folder)
    if hasattr(lm, "score"):
        raise DataError(f"{folder}: a reward model, which predicts no tokens; tasks are for language models")
    positions = longest(lm.config.to_dict())
    written = [task for task in tasks if task.kind in GENERATED]
    generate.check_room(written, tokens=tokens, positions=positions)
    alone = Ranks(0, 1, torch.device("cpu"))
    figures: dict[str, float] = {}
    if scored := [task for task in tasks if task.kind not in GENERATED]:
        role = Frozen(PackedLM(lm, pick_attention(device)), device, dtype)
        figures |= few_shot.measure(
            role, scored, tokenizer, shots=shots, seq_len=min(2048, positions), micro_rows=4, ranks=alone,
            positions=positions,
        )  # fmt: skip
    if written:
        sampler = Sampler(lm.config, tokenizer, device)
        sampler.take({name: value.detach().to(device) for name, value in lm.named_parameters()})
        figures |= generate.measure(
            sampler, written, tokenizer, shots=shots, tokens=tokens, positions=positions, ranks=alone, samples=samples,
            temperature=temperature,
        )  # fmt: skip
    return figures
