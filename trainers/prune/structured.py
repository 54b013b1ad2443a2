"""Cut whole blocks, heads, feed-forward channels and dimensions of the stream out of a decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cluster.errors import RecipeError
from trainers.architecture import head_dim
from trainers.prune.graph import Component, components
from trainers.prune.importance import Importance, Measured, block_scores, unit_scores

Measure = Callable[[Any], Measured]
"""Figures of a model on calibration rows; the empty ones where magnitude decides."""


def parameters(lm: Any) -> dict[str, Tensor]:
    """Parameters by transformers' names, tied ones once, detached."""
    return {name: value.detach() for name, value in lm.named_parameters()}


def cut_layers(lm: Any, layers: int, by: Importance, measure: Measure, *, even: bool = False) -> Any:
    """Keep the `layers` most important blocks, or (even) blocks at equal distances, first and last among them, in
    their order."""
    state, config = parameters(lm), copy.deepcopy(lm.config)
    old = config.num_hidden_layers
    _at_most("layers", layers, old)
    if even:
        kept = [round(i * (old - 1) / (layers - 1)) for i in range(layers)] if layers > 1 else [0]
    else:
        kept = _best(block_scores(state, old, by, measure(lm)), layers).tolist()
    small = {name: value for name, value in state.items() if not name.startswith("model.layers.")}
    for new, number in enumerate(kept):
        prefix = f"model.layers.{number}."
        small |= {
            f"model.layers.{new}.{name.removeprefix(prefix)}": value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    return assemble(config, small, lm)


def cut_heads(lm: Any, kv_heads: int, by: Importance, measure: Measure) -> Any:
    """Keep the `kv_heads` most important key/value heads of each block, each with all its query heads."""
    config = copy.deepcopy(lm.config)
    _at_most("kv_heads", kv_heads, config.num_key_value_heads)
    group = config.num_attention_heads // config.num_key_value_heads
    state = _cut_each(lm, "heads", by, measure, lambda scores: _best(scores, kv_heads))
    config.num_key_value_heads, config.num_attention_heads = kv_heads, kv_heads * group
    return assemble(config, state, lm)


def cut_queries(lm: Any, queries_per_kv: int, by: Importance, measure: Measure) -> Any:
    """Keep the `queries_per_kv` most important query heads of every key/value head."""
    config = copy.deepcopy(lm.config)
    group = config.num_attention_heads // config.num_key_value_heads
    _at_most("queries_per_kv", queries_per_kv, group)

    def choose(scores: Tensor) -> Tensor:
        chosen = [_best(part, queries_per_kv) + group * kv for kv, part in enumerate(scores.split(group))]
        return torch.cat(chosen)

    state = _cut_each(lm, "queries", by, measure, choose)
    config.num_attention_heads = config.num_key_value_heads * queries_per_kv
    return assemble(config, state, lm)


def cut_ffn(lm: Any, intermediate_size: int, by: Importance, measure: Measure) -> Any:
    """Keep the `intermediate_size` most important channels of each feed-forward."""
    config = copy.deepcopy(lm.config)
    _at_most("intermediate_size", intermediate_size, config.intermediate_size)
    state = _cut_each(lm, "ffn", by, measure, lambda scores: _best(scores, intermediate_size))
    config.intermediate_size = intermediate_size
    return assemble(config, state, lm)


def cut_hidden(lm: Any, hidden_size: int, by: Importance, measure: Measure) -> Any:
    """Keep the `hidden_size` most important dimensions of the residual stream.

    RMSNorm's mean runs over the dimensions that stay. With ρ the share of the stream's energy that they hold, estimated
    from what is written into it (embeddings and output layers), the mean of squares becomes ρ · old / new times itself:
    norm weights times the root of that and epsilon times that keep the norms' outputs. Where the dimensions that go
    were never written, ρ is 1 and nothing changes.
    """
    state, config = parameters(lm), copy.deepcopy(lm.config)
    old = config.hidden_size
    _at_most("hidden_size", hidden_size, old)
    component = components(state, config)["hidden"]
    kept = _best(unit_scores(component, state, by, measure(lm)), hidden_size)
    written = torch.zeros(old, dtype=torch.float64)
    for name, value in state.items():
        if name == "model.embed_tokens.weight":
            written += (value.double() ** 2).mean(0).cpu()
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            written += (value.double() ** 2).sum(1).cpu() / value.shape[1]
    factor = float(written[kept].sum() / written.sum()) * old / hidden_size
    state = cut(state, component, kept)
    for name, value in state.items():
        if name.endswith("layernorm.weight") or name == "model.norm.weight":
            state[name] = (value.double() * factor**0.5).to(value.dtype)
    config.hidden_size, config.rms_norm_eps = hidden_size, config.rms_norm_eps * factor
    return assemble(config, state, lm)


def cut(state: Mapping[str, Tensor], component: Component, kept: Tensor) -> dict[str, Tensor]:
    """The parameters with only the kept units [n] of one component, along all its axes."""
    small = dict(state)
    for member in component.members:
        entries = (kept[:, None] * member.width + torch.arange(member.width)).reshape(-1)
        value = small[member.name]
        small[member.name] = value.index_select(member.axis, entries.to(value.device))
    return small


def _cut_each(
    lm: Any, kind: str, by: Importance, measure: Measure, choose: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    state = parameters(lm)
    measured = measure(lm)
    found = components(state, lm.config)
    small = dict(state)
    for number in range(lm.config.num_hidden_layers):
        component = found[f"{kind}.{number}"]
        small = cut(small, component, choose(unit_scores(component, state, by, measured)))
    return small


def _best(scores: Tensor, count: int) -> Tensor:
    """Numbers of the highest scores, in their order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _at_most(name: str, new: int, old: int) -> None:
    if not 0 < new <= old:
        raise RecipeError(f"prune: {name} {new}, but the model has {old}; `corpusmill grow` makes models larger")


def assemble(config: Any, state: Mapping[str, Tensor], lm: Any) -> Any:
    """A plain transformers model of a shape with these parameters, in dtype and device of `lm`."""
    from transformers import AutoModelForCausalLM

    head = head_dim(lm.config)
    config.head_dim, config.dtype = head, lm.dtype
    with torch.random.fork_rng(devices=[]):
        small = AutoModelForCausalLM.from_config(config).to(lm.device, lm.dtype)
    into = dict(small.named_parameters())
    if missing := set(into) ^ set(state):
        raise RecipeError(f"prune: the smaller model and the weights differ in {sorted(missing)[:3]}")
    with torch.no_grad():
        for name, value in into.items():
            value.copy_(state[name])
    small.generation_config = copy.deepcopy(lm.generation_config)
    return small.train(lm.training)
