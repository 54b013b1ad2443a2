"""Make a trained Llama larger without changing what it computes: wider, deeper, or a mixture of experts.

Width of FFN and heads as in Net2Net (Chen et al. 2016): copied units share their outgoing weights in random parts,
which keeps the function and breaks the symmetry. Width of the residual stream by silent dimensions, under RMSNorm's
arithmetic. Depth by identity blocks (Wu et al. 2024, LLaMA Pro). Experts by upcycling (Komatsuzaki et al. 2023).
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings

LAYERS = "model.layers."
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""The layers of a block that add to the residual stream."""


class Growth(Settings):
    """What to grow; what is not given stays as it is."""

    hidden_size: int | None = Field(None, gt=0, description="new width of the residual stream")
    intermediate_size: int | None = Field(None, gt=0, description="new FFN width")
    kv_heads: int | None = Field(None, gt=0, description="new number of key/value heads, each with its query heads")
    layers: int | None = Field(None, gt=0, description="new number of blocks")
    stack: bool = Field(False, description="new blocks are working copies (changes the function; Du et al. 2024)")
    experts: int | None = Field(None, gt=1, description="turn every FFN into that many experts")
    experts_per_token: int = Field(2, gt=0, description="experts that each token visits")
    seed: int = Field(0, ge=0, description="of the random parts")


def grow(lm: Any, growth: Growth) -> Any:
    """A larger model with the same outputs to rounding (unless `stack`), in the dtype of the given one.

    Grows heads and FFN first, then the residual stream, then depth, then experts. Raises RecipeError for a size
    below the present one.
    """
    config = copy.deepcopy(lm.config)
    if config.model_type != "llama":
        raise DataError(f"growth knows Llama-shaped models, found model_type {config.model_type!r}")
    state = {name: value.detach().clone() for name, value in lm.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    random = torch.Generator().manual_seed(growth.seed)
    if growth.kv_heads:
        _at_least("kv_heads", growth.kv_heads, config.num_key_value_heads)
        _wider_heads(state, config, growth.kv_heads, random)
    if growth.intermediate_size:
        _at_least("intermediate_size", growth.intermediate_size, config.intermediate_size)
        _wider_ffn(state, config, growth.intermediate_size, random)
    if growth.hidden_size:
        _at_least("hidden_size", growth.hidden_size, config.hidden_size)
        _wider_stream(state, config, growth.hidden_size, random)
    if growth.layers:
        _at_least("layers", growth.layers, config.num_hidden_layers)
        state = _deeper(state, config, growth.layers, growth.stack)
    if growth.experts:
        if growth.experts_per_token > growth.experts:
            raise RecipeError(
                f"growth: {growth.experts_per_token} experts per token, but only {growth.experts} experts"
            )
        state, config = _experts(state, config, growth, random)
    return _assemble(config, state, lm.dtype)


def grow_folder(source: str, target: str, growth: Growth) -> None:
    """Grow the model in a transformers folder into another folder, tokenizer included; train it by `start_from`.

    Weights are written in float32: rounded to bfloat16, shares of copied units would no longer sum to what they were.
    Raises RecipeError where nothing would grow, or into the folder itself; DataError for another kind of model.
    """
    from transformers.utils import logging

    from trainers.model import load

    if Path(source).resolve() == Path(target).resolve():
        raise RecipeError(f"grow: {source} is source and target; the grown model needs a folder of its own")
    if not (growth.hidden_size or growth.intermediate_size or growth.kv_heads or growth.layers or growth.experts):
        raise RecipeError("grow: nothing grows: set hidden_size, intermediate_size, kv_heads, layers or experts")
    logging.disable_progress_bar()
    lm = load(source)
    _check_heads(lm.config, growth)
    grown = grow(lm, growth)
    grown.save_pretrained(target)
    written = {path.name for path in Path(target).iterdir()}
    for path in Path(source).iterdir():
        weights = path.name.startswith(("model", "pytorch_model"))  # in shards with an index, too
        if path.is_file() and path.name not in written and not weights:
            shutil.copyfile(path, Path(target, path.name))


def _at_least(name: str, new: int, old: int) -> None:
    if new < old:
        raise RecipeError(
            f"growth: {name} {new} is below the model's {old}; growing keeps the function, shrinking cannot"
        )


def _check_heads(config: Any, growth: Growth) -> None:
    """Refuse numbers of heads that transformers does not write. Raises RecipeError."""
    group = config.num_attention_heads // config.num_key_value_heads
    heads, width = (growth.kv_heads or config.num_key_value_heads) * group, growth.hidden_size or config.hidden_size
    if width % heads:
        raise RecipeError(
            f"growth: hidden_size {width} is no multiple of {heads} query heads ({heads // group} kv_heads x {group}), "
            f"as transformers wants it; grow it to {-(-width // heads) * heads} as well, or take other kv_heads"
        )


def _blocks(config: Any) -> list[str]:
    return [f"{LAYERS}{number}." for number in range(config.num_hidden_layers)]


def _shares(origin: Tensor, random: torch.Generator) -> Tensor:
    """For units copied from `origin`: positive parts that sum to 1 over the copies of each unit."""
    parts = torch.rand(len(origin), generator=random, dtype=torch.float64) + 0.5
    whole = torch.zeros(int(origin.max()) + 1, dtype=torch.float64).index_add_(0, origin, parts)
    return parts / whole[origin]


def _copied(old: int, new: int, random: torch.Generator) -> Tensor:
    """Which old unit each new one is a copy of: all of them, then random ones."""
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=random)])


def _pick(state: dict[str, Tensor], layer: str, rows: Tensor) -> None:
    """The rows of a linear layer, and of its bias, for copied units."""
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state:
            state[name] = state[name][rows]


def _share(state: dict[str, Tensor], layer: str, columns: Tensor, shares: Tensor) -> None:
    """The columns that read copied units, each with its part of what the one unit gave."""
    weight = state[f"{layer}.weight"]
    state[f"{layer}.weight"] = (weight[:, columns].double() * shares).to(weight.dtype)


def _wider_ffn(state: dict[str, Tensor], config: Any, width: int, random: torch.Generator) -> None:
    for block in _blocks(config):
        origin = _copied(config.intermediate_size, width, random)
        for name in ("gate_proj", "up_proj"):
            _pick(state, f"{block}mlp.{name}", origin)
        _share(state, f"{block}mlp.down_proj", origin, _shares(origin, random))
    config.intermediate_size = width


def _wider_heads(state: dict[str, Tensor], config: Any, kv_heads: int, random: torch.Generator) -> None:
    head, old = config.head_dim, config.num_key_value_heads
    group = config.num_attention_heads // old

    def rows(heads: Tensor) -> Tensor:
        return (heads[:, None] * head + torch.arange(head)).reshape(-1)

    for block in _blocks(config):
        origin = _copied(old, kv_heads, random)
        queries = (origin[:, None] * group + torch.arange(group)).reshape(-1)
        for name, heads in (("q_proj", queries), ("k_proj", origin), ("v_proj", origin)):
            _pick(state, f"{block}self_attn.{name}", rows(heads))
        shares = _shares(queries, random).repeat_interleave(head)
        _share(state, f"{block}self_attn.o_proj", rows(queries), shares)
    config.num_key_value_heads, config.num_attention_heads = kv_heads, kv_heads * group


def _wider_stream(state: dict[str, Tensor], config: Any, width: int, random: torch.Generator) -> None:
    """New dimensions carry 0 at first: nothing writes them, readers have random weights for them.

    RMSNorm divides by the root of a mean that now runs over more zeros: the mean falls by old/new, so norm weights
    shrink by √(old/new), and epsilon by old/new.
    """
    old, more = config.hidden_size, width - config.hidden_size
    factor = old / width

    def columns(name: str) -> None:
        weight = state[name]
        fresh = torch.randn((weight.shape[0], more), generator=random) * config.initializer_range
        state[name] = torch.cat([weight, fresh.to(weight.dtype)], 1)

    def silent(name: str, dim: int) -> None:
        weight = state[name]
        shape = list(weight.shape)
        shape[dim] = more
        state[name] = torch.cat([weight, weight.new_zeros(shape)], dim)

    def norm(name: str) -> None:
        weight = state[name]
        grown = torch.cat([weight, weight.new_ones(more)]).double() * factor**0.5
        state[name] = grown.to(weight.dtype)

    silent("model.embed_tokens.weight", 1)
    if "lm_head.weight" in state:
        columns("lm_head.weight")
    for block in _blocks(config):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            columns(f"{block}{name}.weight")
        for name in WRITERS:
            silent(f"{block}{name}.weight", 0)
            if f"{block}{name}.bias" in state:
                silent(f"{block}{name}.bias", 0)
        norm(f"{block}input_layernorm.weight")
        norm(f"{block}post_attention_layernorm.weight")
    norm("model.norm.weight")
    config.hidden_size, config.rms_norm_eps = width, config.rms_norm_eps * factor


def _deeper(state: dict[str, Tensor], config: Any, layers: int, stack: bool) -> dict[str, Tensor]:
    """Spread the new blocks evenly: each is a copy of the one below, its two writers set to 0 unless stacking."""
    old = config.num_hidden_layers
    plan: list[tuple[int, bool]] = []
    for number in range(old):
        plan.append((number, False))
        plan += [(number, True)] * (layers * (number + 1) // old - layers * number // old - 1)
    grown = {name: value for name, value in state.items() if not name.startswith(LAYERS)}
    for new, (number, added) in enumerate(plan):
        prefix = f"{LAYERS}{number}."
        for name, value in state.items():
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                silent = added and not stack and rest.rpartition(".")[0] in WRITERS
                grown[f"{LAYERS}{new}.{rest}"] = torch.zeros_like(value) if silent else value.clone()
    config.num_hidden_layers = layers
    return grown


def _experts(
    state: dict[str, Tensor], config: Any, growth: Growth, random: torch.Generator
) -> tuple[dict[str, Tensor], Any]:
    """Every FFN copied into experts behind a random router; the chosen experts' weights sum to 1, so equal copies
    give the dense output."""
    from transformers import MixtralConfig

    assert growth.experts is not None
    biases = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if biases:
        raise RecipeError(f"growth: experts are Mixtral's, which have no biases; this model has {' and '.join(biases)}")
    about = {key: value for key, value in config.to_dict().items() if key in MixtralConfig().to_dict()}
    about.pop("model_type", None)
    about.pop("architectures", None)
    about |= {"num_local_experts": growth.experts, "num_experts_per_tok": growth.experts_per_token}
    moe = MixtralConfig(**about)
    grown = {}
    for name, value in state.items():
        if ".mlp.up_proj." in name or ".mlp.down_proj." in name:
            continue
        if ".mlp.gate_proj." in name:
            block = name.removesuffix("gate_proj.weight")
            both = torch.cat([value, state[f"{block}up_proj.weight"]])
            grown[f"{block}experts.gate_up_proj"] = both.repeat(growth.experts, 1, 1)
            grown[f"{block}experts.down_proj"] = state[f"{block}down_proj.weight"].repeat(growth.experts, 1, 1)
            router = torch.randn((growth.experts, value.shape[1]), generator=random) * config.initializer_range
            grown[f"{block}gate.weight"] = router.to(value.dtype)
        else:
            grown[name] = value
    return grown, moe


def _assemble(config: Any, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    config.dtype = dtype
    with torch.random.fork_rng(devices=[]):
        grown = AutoModelForCausalLM.from_config(config).to(dtype)
    if config.tie_word_embeddings:
        state = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    grown.load_state_dict(state, strict=True)
    return grown
