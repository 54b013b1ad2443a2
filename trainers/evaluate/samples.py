"""Continuations of a fixed set of prompts by the model in training, whatever its ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainers.batch import Rows, collate
from trainers.roles import Role


@torch.no_grad()
def continued(
    role: Role,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    tokens: int,
    micro_rows: int,
    seq_len: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[dict[str, str]]:
    """[{"prompt", "text"}]: each prompt with up to `tokens` tokens more, the same for the same weights and seed.

    Every pass has the shape of a training batch [micro_rows, seq_len], one prompt a row: compiled blocks are not
    compiled again, and all ranks do the same, as ZeRO 3 needs. Temperature 0 takes the likeliest token.
    """
    found = []
    for first in range(0, len(prompts), micro_rows):
        some = prompts[first : first + micro_rows]
        ids = np.zeros((micro_rows, seq_len), np.int64)
        ends = []
        for row, prompt in enumerate(some):
            given = tokenizer(prompt, add_special_tokens=False).input_ids[-(seq_len - tokens) :]
            given = given or [tokenizer.eos_token_id]
            ids[row, : len(given)] = given
            ends.append(len(given))
        draws = torch.Generator().manual_seed(seed + first)
        begins = list(ends)
        running = [True] * len(some)
        for _ in range(tokens):
            batch = collate(Rows(ids, [np.array([seq_len])] * micro_rows, None))
            last = role(batch, "logits")[range(len(some)), [end - 1 for end in ends]].float().cpu()
            if temperature > 0:
                chosen = torch.multinomial((last / temperature).softmax(-1), 1, generator=draws).squeeze(1)
            else:
                chosen = last.argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                running[row] = running[row] and token != tokenizer.eos_token_id
                if running[row]:
                    ids[row, ends[row]] = token
                    ends[row] += 1
        for row, prompt in enumerate(some):
            text = tokenizer.decode(ids[row, begins[row] : ends[row]].tolist())
            found.append({"prompt": prompt, "text": text})
    return found
