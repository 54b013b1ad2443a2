"""Soft prompts (Lester et al. 2021): learned vectors in front of every document, one prompt per task.

What a prompt's positions compute depends on the prompt alone, for it comes first and attention is causal. So a
packed row holds each task's prompt once, and every document of the task attends to it: the same numbers as a prompt in
front of each document, for `tasks · tokens` more positions per row.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from cluster.errors import DataError
from trainers.model import PackedLM
from trainers.peft.method import Method, Tuning, freeze

TABLE = "prompt_embeddings"


class PromptTuning(Method):
    """`tokens` learned input vectors in front of each document. Lester et al. 2021; with an encoder, p-tuning."""

    method: Literal["prompt"] = "prompt"
    tokens: int = Field(20, gt=0, description="length of a prompt")
    tasks: int = Field(
        1, gt=0, description="prompts; a row's is that of its part of the data mixture, in order; held out: 0"
    )
    init: Literal["vocabulary", "random"] = Field(
        "vocabulary", description="begin with random tokens' vectors, or noise"
    )
    encoder: int = Field(
        0, ge=0, description="p-tuning (Liu et al. 2021): vectors pass an MLP of this width while training; 0: none"
    )

    def attach(self, packed: PackedLM) -> None:
        lm: Any = packed.lm
        freeze(lm)
        table = lm.get_input_embeddings().weight
        shape = (self.tasks, self.tokens)
        if self.init == "vocabulary":
            first = table.detach()[torch.randint(table.shape[0], shape)].clone()
        else:
            first = (torch.randn((*shape, table.shape[1])) * lm.config.initializer_range).to(table)
        packed.tuning = Prompts(first, self.encoder).to(table.device, table.dtype)

    def merge(self, packed: PackedLM) -> None:
        raise NotImplementedError

    def mergeable(self) -> str | None:
        return (
            "its vectors are no tokens of the vocabulary; open the adapter with peft, or with trainers.peft.tune.load"
        )

    def saved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.tasks == 1 and not self.encoder:
            return {TABLE: state["tuning.vectors"][0]}
        return state

    def loaded(self, file: dict[str, Tensor], lm: Any) -> dict[str, Tensor]:
        return {"tuning.vectors": file[TABLE][None]} if TABLE in file else file

    def peft_config(self, lm: Any) -> Any:
        if self.tasks > 1 or self.encoder:
            return None
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.tokens,
            token_dim=lm.config.hidden_size,
            num_layers=lm.config.num_hidden_layers,
            num_attention_heads=lm.config.num_attention_heads,
        )


class Prompts(Tuning):
    """The prompts, [tasks, tokens, hidden], and how documents see theirs."""

    def __init__(self, first: Tensor, encoder: int):
        super().__init__()
        self.vectors = nn.Parameter(first)
        hidden = first.shape[-1]
        self.encoder = (
            nn.Sequential(nn.Linear(hidden, encoder), nn.ReLU(), nn.Linear(encoder, hidden)) if encoder else None
        )

    def forward(self) -> Tensor:
        """The prompts as the model gets them."""
        # a copy: ZeRO-3 takes the parameter away again after this call
        return self.vectors.clone() if self.encoder is None else self.encoder(self.vectors)  # type: ignore[no-any-return]

    def in_front(self) -> Tensor:
        """The first prompt, [tokens, hidden]: that of rows of which nobody says whose they are."""
        return self()[0]

    def arguments(
        self, packed: PackedLM, inputs: dict[str, Any], doc_index: Tensor, targets: Tensor, parts: Tensor | None
    ) -> dict[str, Any]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        soft = self()
        tasks, tokens, hidden = soft.shape
        rows = ids.shape[0]
        if parts is None:
            if tasks > 1 and self.training:  # a held-out split is that of the first data set, whose prompt is the first
                raise DataError(
                    f"{tasks} prompts, but the batch does not say which rows are whose; give several data sets"
                )
            parts = torch.zeros(rows, dtype=torch.long, device=ids.device)
        elif not torch.compiler.is_compiling() and tasks > 1 and int(parts.max()) >= tasks:
            raise DataError(f"a row of part {int(parts.max())} of the data, but only {tasks} prompts; set peft.tasks")
        words = packed.lm.get_input_embeddings()(ids)
        embeddings = torch.cat([soft.to(words.dtype).reshape(1, -1, hidden).expand(rows, -1, -1), words], 1)
        places = torch.arange(tokens, device=ids.device).repeat(tasks).expand(rows, -1)
        owner = torch.arange(tasks, device=ids.device).repeat_interleave(tokens).expand(rows, -1)
        task = torch.cat([owner, (parts if tasks > 1 else parts * 0)[:, None].expand_as(ids)], 1)
        document = torch.cat([owner * 0 - 1, doc_index.long()], 1)
        return {
            "inputs_embeds": embeddings,
            "position_ids": torch.cat([places, positions + tokens], 1),
            "attention_mask": prompted_mask(task, document, packed.attention),
        }


def prompted_mask(task: Tensor, document: Tensor, attention: str) -> Any:
    """Who may look at whom: earlier positions of the same document or prompt, and the prompt of the own task.

    task and document int [rows, length]; document is −1 on prompts, whose task says whose they are. As
    `documents_mask`: bool [rows, 1, length, length], or a BlockMask.
    """
    length = task.shape[1]
    if attention == "sdpa":
        same = task[:, :, None] == task[:, None, :]
        shared = (document[:, :, None] == document[:, None, :]) | (document[:, None, :] == -1)
        causal = torch.ones((length, length), dtype=torch.bool, device=task.device).tril()
        return (same & shared & causal).unsqueeze(1)

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shared = (document[row, query] == document[row, key]) | (document[row, key] == -1)
        return (query >= key) & (task[row, query] == task[row, key]) & shared

    return create_block_mask(sees, task.shape[0], None, length, length, device=str(task.device))
