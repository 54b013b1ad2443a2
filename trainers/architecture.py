"""Which transformers models train here, told from config.json alone, before anything starts. Imports no torch.

Rows are packed, so attention, the loss and the sampler are ours: a model whose own code does more than these know
(capped or scaled logits, sinks, recurrent states) would train as another model. Those of MODELS are tested to give
what transformers gives; all others are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import storage
from cluster.errors import RecipeError

if TYPE_CHECKING:
    from trainers.recipe import TrainRecipe

MODELS = (
    "gemma", "gemma3_text", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
"""`model_type` of what trains here."""

DEAF = ("stablelm",)
"""Of those, the ones whose code in transformers hands no further arguments on to attention, which two settings need."""


def check_models(recipe: TrainRecipe, data: str | None, about: Mapping[str, Any], *, missing: bool = False) -> None:
    """Refuse the models of a recipe that cannot learn from a data set: its folder (None: not there yet), dataset.json.

    With `missing`, a folder that is not there is not refused: something will make it. Raises RecipeError.
    """
    for where, folder, reads in folders(recipe):
        if missing and not Path(folder).exists():
            continue
        config = read_config(folder, where)
        if data is None:
            continue
        most, length = longest(config), about["seq_len"]
        if reads and length > most:
            raise RecipeError(
                f"{where}: {folder} reads {most:,} tokens (max_position_embeddings, sliding_window), the data's rows "
                f"have {length:,}; pack them with seq_len {most:,} or less"
            )
        if config["vocab_size"] < about["vocab_size"]:
            raise RecipeError(
                f"{where}: {folder} has a vocabulary of {config['vocab_size']:,}, the data need "
                f"{about['vocab_size']:,}; pack the data with this model's tokenizer"
            )
        _check_tokens(where, folder, storage.join(data, about.get("tokenizer", "tokenizer")))


def read_config(folder: str, where: str) -> dict[str, Any]:
    """The config.json of a model that trains here. Raises RecipeError, which begins with `where`, for any other."""
    path = Path(folder, "config.json")
    if not path.is_file():
        if Path(folder, "adapter_config.json").is_file():
            base = json.loads(Path(folder, "adapter_config.json").read_text()).get("base_model_name_or_path")
            raise RecipeError(
                f"{where}: {folder} holds an adapter of {base}, no whole model; merge it (peft: "
                "AutoPeftModelForCausalLM, merge_and_unload, save_pretrained) and name that folder"
            )
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", folder) and not Path(folder).exists()
        hint = f"; a model of the hub comes by: hf download {folder} --local-dir DIR" if hub else ""
        raise RecipeError(f"{where}: no config.json in {folder}; expected a folder that save_pretrained wrote{hint}")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{where}: {path}: not JSON: {error}") from None
    refuse(config, f"{where}: {folder}")
    return config


def _check_tokens(where: str, folder: str, tokenizer: str) -> None:
    """Refuse a model whose own tokenizer means other tokens by the same ids. Raises RecipeError."""
    path, other = str(Path(folder, "tokenizer.json")), storage.join(tokenizer, "tokenizer.json")
    if not storage.exists(path) or not storage.exists(other):
        return
    mine, theirs = storage.read_bytes(path), storage.read_bytes(other)
    if mine == theirs:
        return
    of_model, of_data = _tokens(json.loads(mine)), _tokens(json.loads(theirs))
    for number in sorted(of_model.keys() & of_data.keys()):
        if of_model[number] != of_data[number]:
            raise RecipeError(
                f"{where}: token {number} is {of_model[number]!r} in {folder}, {of_data[number]!r} in the data's "
                f"{tokenizer}; pack the data with this model's tokenizer"
            )


def _tokens(spec: Mapping[str, Any]) -> dict[int, str]:
    """Tokens by id of a tokenizer.json: BPE and the like (a mapping) or unigram (a list of pairs)."""
    words = spec["model"].get("vocab", {})
    found = (
        {i: pair[0] for i, pair in enumerate(words)} if isinstance(words, list) else {i: t for t, i in words.items()}
    )
    return found | {token["id"]: token["content"] for token in spec.get("added_tokens", [])}


def refuse(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that is not of MODELS, or whose weights are quantised. Raises RecipeError."""
    kind = config.get("model_type")
    if kind not in MODELS:
        raise RecipeError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(MODELS)}")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise RecipeError(f"{where}: its weights are quantised ({method}); training needs float32, bfloat16 or float16")


def check_arguments(kind: str, *, varlen: bool, shared: bool) -> None:
    """Refuse engine settings for which attention must be told more than a mask. Raises RecipeError."""
    if kind in DEAF and (varlen or shared):
        setting, other = ("sequence", "sequence: 1") if shared else ("attention: varlen", "attention: flex")
        raise RecipeError(
            f"engine: {setting}: not for model_type {kind!r}, whose attention cannot be told; use {other}"
        )


def longest(config: Mapping[str, Any]) -> int:
    """Tokens of the longest document that a model sees whole: its positions, or its sliding window if that is less."""
    return min(int(config.get("max_position_embeddings") or 2048), window(config) or 1 << 62)


def window(config: Mapping[str, Any]) -> int | None:
    """How many tokens the attention of some or all blocks looks back; None where it sees everything before."""
    return (config.get("sliding_window") or None) if config.get("use_sliding_window", True) else None


def positions(config: Any) -> int:
    """`longest` of a transformers configuration."""
    return longest(config.to_dict())


def folders(recipe: TrainRecipe) -> Iterator[tuple[str, str, bool]]:
    """(setting, folder, whether it reads the data's rows) of each model that a recipe names."""
    own = recipe.trainer in ("grpo", "ppo")  # their rows are samples
    if recipe.start_from is not None:
        yield "start_from", recipe.start_from, not own
    for folder in recipe.objective.get("teachers") or ():
        yield "objective.teachers", folder, True
    for name in ("reward_model", "critic", "reference"):
        folder = recipe.objective.get(name)
        if folder not in (None, "start", "stored"):
            yield f"objective.{name}", folder, not own


def head_dim(config: Any) -> int:
    """Width of an attention head of a transformers configuration; many do not name it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def expert_width(config: Any) -> int:
    """Channels of a feed-forward layer, or of one expert where a token visits some of many."""
    return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
