"""Trainable keys and values in front of every layer's own (Li & Liang 2021), right for packed rows.

peft hands its prefixes over as a key/value cache, which transformers takes as a sign that rows are not packed:
documents then see each other without a word. Here the attention itself sees the prefix, every document the same one,
and the file is peft's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainers.architecture import head_dim
from trainers.model import PackedLM
from trainers.peft.method import Method, Tuning, freeze

TABLE = "prompt_embeddings"


class PrefixTuning(Method):
    """Every query also attends to `tokens` learned keys and values of its layer. Li & Liang 2021."""

    method: Literal["prefix"] = "prefix"
    tokens: int = Field(20, gt=0, description="learned key/value pairs per layer; real positions begin after them")
    init_std: float = Field(0.02, ge=0, description="standard deviation of the initial keys and values")

    def attach(self, packed: PackedLM) -> None:
        lm: Any = packed.lm
        freeze(lm)
        for layer in lm.get_decoder().layers:
            attention = layer.self_attn
            width = attention.k_proj.out_features // attention.head_dim
            like = attention.k_proj.weight
            attention.prefix = Prefix(width, self.tokens, attention.head_dim, self.init_std).to(like.device, like.dtype)
        packed.tuning = Shift(self.tokens)

    def merge(self, packed: PackedLM) -> None:
        raise NotImplementedError

    def mergeable(self) -> str | None:
        return "its keys and values belong to no token; open the adapter with peft, or with trainers.peft.tune.load"

    def saved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """→ {prompt_embeddings: [tokens, layers · (keys, values) · kv_heads · head]}, the layout of peft."""
        layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in state})
        parts = []
        for layer in layers:
            for kind in ("keys", "values"):
                value = state[f"model.layers.{layer}.self_attn.prefix.{kind}"]
                parts.append(value.transpose(0, 1).reshape(self.tokens, -1))
        return {TABLE: torch.cat(parts, 1)}

    def loaded(self, file: dict[str, Tensor], lm: Any) -> dict[str, Tensor]:
        config = lm.config
        table = file[TABLE].reshape(self.tokens, config.num_hidden_layers, 2, config.num_key_value_heads, -1)
        return {
            f"model.layers.{layer}.self_attn.prefix.{kind}": table[:, layer, i].transpose(0, 1)
            for layer in range(config.num_hidden_layers)
            for i, kind in enumerate(("keys", "values"))
        }

    def peft_config(self, lm: Any) -> Any:
        from peft import PrefixTuningConfig

        config = lm.config
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.tokens,
            num_layers=config.num_hidden_layers,
            num_attention_heads=config.num_key_value_heads,
            token_dim=config.num_key_value_heads * head_dim(config),
        )


class Prefix(nn.Module):
    """The learned keys and values of one layer, [kv_heads, tokens, head]."""

    def __init__(self, kv_heads: int, tokens: int, head: int, std: float):
        super().__init__()
        self.keys = nn.Parameter(torch.randn(kv_heads, tokens, head) * std)
        self.values = nn.Parameter(torch.randn(kv_heads, tokens, head) * std)

    def forward(self) -> tuple[Tensor, Tensor]:
        # copies: ZeRO-3 takes the parameters away again after this call
        return self.keys.clone(), self.values.clone()

    def in_front(self, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [rows, kv_heads, seq, head] and the bool mask [rows, 1, seq, seq], with the prefix in front,
        which every query sees."""
        keys, values = self()
        rows, tokens = key.shape[0], keys.shape[1]
        seen = mask.new_ones((*mask.shape[:-1], tokens))
        key = torch.cat([keys.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
        value = torch.cat([values.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
        return key, value, torch.cat([seen, mask], -1)

    def merged(self, query: Tensor, out: Tensor, lse: Tensor, scale: float | None) -> Tensor:
        """Attention over prefix and tokens, from attention over the tokens alone and its log-sum-exp.

        query and out [rows, heads, seq, head], lse [rows, heads, seq] natural. softmax over the union is the mean of
        both parts' results weighted by the parts' sums of exponentials.
        """
        keys, values = (x.to(query.dtype).repeat_interleave(query.shape[1] // x.shape[0], 0) for x in self())
        scores = (query @ keys.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
        ours = scores.softmax(-1).to(values.dtype) @ values
        share = torch.sigmoid(lse.float() - scores.logsumexp(-1)).unsqueeze(-1)
        return (out.float() * share + ours.float() * (1 - share)).to(out.dtype)


class Shift(Tuning):
    """Positions begin after the prefix."""

    def __init__(self, tokens: int):
        super().__init__()
        self.shift = tokens

    def arguments(
        self, packed: PackedLM, inputs: dict[str, Any], doc_index: Tensor, targets: Tensor, parts: Tensor | None
    ) -> dict[str, Any]:
        shifted = {**inputs, "position_ids": inputs["position_ids"] + self.shift}
        return super().arguments(packed, shifted, doc_index, targets, parts)
