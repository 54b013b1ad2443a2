"""Attention that keeps the documents of a packed row apart, by three kernels, through transformers' own interface.

The functions registered here answer to PackedLM and nobody else, so that the silent ways to attend across documents (a
mask of ones, a cache, no positions) are refused.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cluster.errors import DataError, RecipeError
from trainers import sequence

Attention = Literal["sdpa", "flex", "varlen"]


def register() -> None:
    """Make transformers know the three kernels, as corpusmill_sdpa, corpusmill_flex and corpusmill_varlen."""
    from transformers import AttentionInterface

    for name, attend in (("sdpa", _packed_sdpa), ("flex", _packed_flex), ("varlen", _packed_varlen)):
        AttentionInterface.register(f"corpusmill_{name}", sequence.shared(_told(attend)))


def documents_mask(doc_index: Tensor, attention: Attention) -> Any:
    """Who may look at whom: query q sees key k when both lie in one document and k is not later.

    doc_index [rows, seq_len] → bool [rows, 1, seq_len, seq_len] for sdpa, a BlockMask for flex (whole blocks of other
    documents are then skipped, not computed and masked).
    """
    if attention == "sdpa":
        length = doc_index.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool, device=doc_index.device).tril()
        return ((doc_index[:, :, None] == doc_index[:, None, :]) & causal).unsqueeze(1)
    return _block_mask(doc_index)


BLOCK = 128
"""Tokens per side of a flex_attention block."""


def _block_mask(doc_index: Tensor) -> BlockMask:
    """The BlockMask of documents that follow each other, from the first and last document of each block alone.

    Cost: (seq_len / BLOCK)² per row, where asking every pair of tokens takes seq_len². For blocks q > k (all keys
    before all queries), some pair shares a document when the last document of k is the first of q, and all pairs do
    when the first of k is the last of q.
    """

    def same_document(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (doc_index[row, query] == doc_index[row, key])

    rows, length = doc_index.shape
    if length % BLOCK:
        return create_block_mask(same_document, rows, None, length, length, device=str(doc_index.device))
    first, last = doc_index[:, ::BLOCK], doc_index[:, BLOCK - 1 :: BLOCK]
    number = torch.arange(length // BLOCK, device=doc_index.device)
    earlier = number[:, None] > number[None, :]
    full = earlier & (first[:, None, :] == last[:, :, None])
    some = (earlier & (last[:, None, :] == first[:, :, None]) & ~full) | (number[:, None] == number[None, :])
    return BlockMask.from_kv_blocks(
        *_in_order(some), *_in_order(full), BLOCK_SIZE=BLOCK, mask_mod=same_document, seq_lengths=(length, length)
    )


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """bool [rows, queries, keys] → how many keys each query block has, and their numbers first, with a head axis."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)


def _guard(borders: Any) -> None:
    """Refuse a mask or borders that PackedLM did not make: nothing would tell tokens of one document from another's."""
    if not hasattr(borders, "documents_apart"):
        raise DataError(
            "packed attention called without PackedLM: with a mask of ones, use_cache, generate() or no position_ids "
            "tokens attend across documents. Call PackedLM, or export the model and open that by transformers"
        )


def _packed_sdpa(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """query [rows, heads, seq, head], key and value [rows, kv_heads, seq, head] → [rows, seq, heads, head]."""
    _guard(attention_mask)
    prefix = getattr(_module, "prefix", None)
    if prefix is not None:
        key, value, attention_mask = prefix.in_front(key, value, attention_mask)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=kwargs.get("dropout", 0.0), scale=kwargs.get("scaling")
    )
    return out.transpose(1, 2), None


def _packed_flex(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """The same by flex_attention (CUDA), which skips blocks that no document fills."""
    _guard(attention_mask)
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    grouped = query.shape[1] != key.shape[1]
    prefix = getattr(_module, "prefix", None)
    if prefix is not None:
        scale = kwargs.get("scaling")
        out, lse = attend(
            query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=grouped, return_lse=True
        )
        return prefix.merged(query, out, lse, scale).transpose(1, 2), None
    out = attend(query, key, value, block_mask=attention_mask, scale=kwargs.get("scaling"), enable_gqa=grouped)
    return out.transpose(1, 2), None


def _packed_varlen(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """The same by torch's variable-length flash attention (CUDA, bf16): documents as sequences of one flat batch."""
    from torch.nn.attention import varlen

    _guard(kwargs.get("cu_seq_lens_q"))
    if getattr(_module, "prefix", None) is not None:
        raise RecipeError("engine: attention: varlen cannot put a prefix before every document; use flex")
    rows, heads, length, head = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    flat = [x.transpose(1, 2).reshape(rows * length, heads, head) for x in (query, key, value)]
    starts = kwargs["cu_seq_lens_q"]
    attend: Any = varlen.varlen_attn
    out = attend(*flat, starts, starts, length, length, scale=kwargs.get("scaling"), **_causal())
    return out.view(rows, length, heads, head), None


def _told(attend: sequence.Attend) -> sequence.Attend:
    """The same; where a distillation asked the layer for them (its list `told`), queries, keys and values are noted."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        told = getattr(module, "told", None)
        if told is not None:
            told += [query, key, value]
        return attend(module, query, key, value, attention_mask, **kwargs)

    return attention


def _causal() -> dict[str, Any]:
    """How this torch's varlen_attn is told to look back only: a window since 2.11, a flag before."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    return {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}


def document_starts(doc_index: Tensor) -> Tensor:
    """doc_index [rows, seq_len] → int32 [n + 1], where documents begin among rows · seq_len positions, and the end.

    Filled up with empty documents to a power of two (64 at least): compiled blocks then see few shapes.
    """
    rows, length = doc_index.shape
    new = torch.ones_like(doc_index, dtype=torch.bool)
    new[:, 1:] = doc_index[:, 1:] != doc_index[:, :-1]
    starts = new.reshape(-1).nonzero().squeeze(1).to(torch.int32)
    size = max(64, 1 << (len(starts) - 1).bit_length()) + 1
    filled = starts.new_full((size,), rows * length)
    filled[: len(starts)] = starts
    return filled


_flex: dict[str, Any] = {}


def _compiled_flex() -> Any:
    if "flex" not in _flex:
        _flex["flex"] = torch.compile(flex_attention, dynamic=False)
    return _flex["flex"]


def pick_attention(device: torch.device, wanted: Literal["auto"] | Attention = "auto") -> Attention:
    """What is wanted; else flex on CUDA, SDPA with a block-diagonal mask on CPU (flex has no CPU backward).

    Raises RecipeError for kernels that this device lacks.
    """
    if wanted == "varlen" and device.type != "cuda":
        raise RecipeError("engine: attention: varlen is flash attention, which only CUDA has; use auto or sdpa")
    if wanted == "flex" and device.type != "cuda":
        raise RecipeError("engine: attention: flex has no backward pass on CPU; use auto or sdpa")
    if wanted != "auto":
        return wanted
    return "flex" if device.type == "cuda" else "sdpa"


def masked_attention(device: torch.device, wanted: Literal["auto"] | Attention = "auto") -> Attention:
    """`pick_attention` for models that take document masks alone. Raises RecipeError for varlen, which has none."""
    if wanted == "varlen":
        raise RecipeError("engine: attention: varlen is for next tokens alone; reward models and students take flex")
    return pick_attention(device, wanted)
