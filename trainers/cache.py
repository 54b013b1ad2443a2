"""Keys and values of the answers that are being sampled, and attention over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainers.architecture import head_dim


class Cache:
    """Keys and values of all slots, one tensor of each per layer: [slots, kv_heads, positions, head].

    It stands where transformers expects its own cache: every layer calls `update` once per forward pass.
    """

    def __init__(self, config: Any, slots: int, positions: int, device: torch.device, dtype: torch.dtype):
        shape = (slots, config.num_key_value_heads, positions, head_dim(config))
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.is_sliding = [False for _ in layers]
        self.is_compileable = False
        self._slots = self._source = self._at = torch.zeros(0, dtype=torch.long)
        self._span = 0

    def fill(self, slots: Tensor, source: Tensor) -> None:
        """The next pass reads whole prompts: slot i takes over row source[i] of it."""
        self._slots, self._source, self._span = slots, source, 0

    def extend(self, at: Tensor, span: int) -> None:
        """The next pass adds one token per slot at position at[slot]; attention sees the first `span` positions."""
        self._at, self._span = at, span

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what a layer computed, and give back what it shall attend to."""
        keys, values = self.keys[layer], self.values[layer]
        if not self._span:
            width = key.shape[2]
            keys[self._slots, :, :width] = key[self._source]
            values[self._slots, :, :width] = value[self._source]
            return key, value
        rows = torch.arange(len(self._at), device=key.device)
        keys[rows, :, self._at] = key[:, :, 0]
        values[rows, :, self._at] = value[:, :, 0]
        return keys[:, :, : self._span], values[:, :, : self._span]

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these."""
        self.keys = [tensor[slots] for tensor in self.keys]
        self.values = [tensor[slots] for tensor in self.values]

    def get_seq_length(self, *_: Any) -> int:
        """Positions are always given: nobody counts from here."""
        return 0


def cached_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """query [rows, heads, new, head], key and value [rows, kv_heads, seen, head], mask bool [rows or 1, 1, new, seen].

    A prefix that a tuning method gave the layer stands in front of all. With one new token the heads that share keys
    become the query axis, so that no key is copied for them.
    """
    prefix = getattr(_module, "prefix", None)
    if prefix is not None:
        key, value, attention_mask = prefix.in_front(key, value, attention_mask)
    rows, heads, new, head = query.shape
    shared = key.shape[1]
    attend = nn.functional.scaled_dot_product_attention
    if new == 1:
        grouped = query.reshape(rows, shared, heads // shared, head)
        out = attend(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
        return out.reshape(rows, 1, heads, head), None
    if heads != shared:
        key, value = (t.repeat_interleave(heads // shared, dim=1) for t in (key, value))
    out = attend(query, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.transpose(1, 2), None
