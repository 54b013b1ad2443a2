"""Which parts of a decoder's parameters belong together: if one goes, the others must.

A node is one axis of one parameter. Two axes are joined when the same numbers run along both: a layer's outputs and
the inputs of what reads them, everything that is added into the residual stream, the query heads and the key/value head
they share. The connected components are what can be cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cluster.errors import DataError
from trainers.architecture import head_dim

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""model_type of the architectures whose flow of data is the one below."""

Node = tuple[str, int]
"""(parameter, axis)"""


@dataclass(frozen=True)
class Member:
    """An axis of a component. Unit u owns its entries [u · width, (u + 1) · width)."""

    name: str
    axis: int
    width: int


@dataclass(frozen=True)
class Component:
    """Axes that are cut together, in `units` equal units."""

    members: tuple[Member, ...]
    units: int


class _Union:
    def __init__(self) -> None:
        self.parent: dict[Node, Node] = {}

    def find(self, node: Node) -> Node:
        self.parent.setdefault(node, node)
        while self.parent[node] != node:
            node = self.parent[node]
        return node

    def join(self, *nodes: Node) -> None:
        roots = {self.find(node) for node in nodes}
        first = min(roots)
        for root in roots:
            self.parent[root] = first


STREAM: Node = ("(residual stream)", 0)


def components(state: Mapping[str, Tensor], config: Any) -> dict[str, Component]:
    """The components by what they are: hidden, and per block ffn.N, heads.N (key/value heads with their queries) and
    queries.N (single query heads; equally many must stay for each key/value head).

    `state` maps transformers' names to tensors, tied ones once. Raises DataError for a model that it does not know.
    """
    if config.model_type not in MODELS:
        raise DataError(f"pruning knows {', '.join(MODELS)}, found model_type {config.model_type!r}")
    union = _Union()
    head, group = head_dim(config), config.num_attention_heads // config.num_key_value_heads
    width: dict[Node, int] = {}

    def outputs(layer: str) -> list[Node]:
        return [(f"{layer}.{part}", 0) for part in ("weight", "bias") if f"{layer}.{part}" in state]

    union.join(STREAM, ("model.embed_tokens.weight", 1), ("model.norm.weight", 0))
    if "lm_head.weight" in state:
        union.join(STREAM, ("lm_head.weight", 1))
        union.join(("model.embed_tokens.weight", 0), ("lm_head.weight", 0))
    for number in range(config.num_hidden_layers):
        block = f"model.layers.{number}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        union.join(STREAM, (f"{block}.input_layernorm.weight", 0), (f"{block}.post_attention_layernorm.weight", 0))
        for reader in ("q_proj", "k_proj", "v_proj"):
            union.join(STREAM, (f"{attention}.{reader}.weight", 1))
        for reader in ("gate_proj", "up_proj"):
            union.join(STREAM, (f"{mlp}.{reader}.weight", 1))
        union.join(STREAM, *outputs(f"{attention}.o_proj"), *outputs(f"{mlp}.down_proj"))
        # elementwise product of gate and up, read by down
        union.join(*outputs(f"{mlp}.gate_proj"), *outputs(f"{mlp}.up_proj"), (f"{mlp}.down_proj.weight", 1))
        # scores join queries and keys, their sum over keys joins values, o reads it
        queries = [*outputs(f"{attention}.q_proj"), (f"{attention}.o_proj.weight", 1)]
        keys = [*outputs(f"{attention}.k_proj"), *outputs(f"{attention}.v_proj")]
        union.join(*queries, *keys)
        width |= dict.fromkeys(queries, group * head) | dict.fromkeys(keys, head)
        for norm in ("q_norm", "k_norm"):  # along one head's dimensions, which are not cut
            if f"{attention}.{norm}.weight" in state:
                union.join((f"{attention}.{norm}.weight", 0))
    return _named(union, state, width, config)


def _named(union: _Union, state: Mapping[str, Tensor], width: dict[Node, int], config: Any) -> dict[str, Component]:
    axes: dict[Node, list[Node]] = {}
    for name, value in state.items():
        for axis in range(value.ndim):
            node = (name, axis)
            if node not in union.parent and name != "model.embed_tokens.weight":
                raise DataError(f"pruning does not know what axis {axis} of {name} is connected with")
            axes.setdefault(union.find(node), []).append(node)

    def component(node: Node, unit: dict[Node, int]) -> Component:
        members = tuple(Member(*one, unit.get(one, 1)) for one in axes[union.find(node)])
        units = {state[one.name].shape[one.axis] / one.width for one in members}
        if len(units) != 1:
            raise DataError(f"axes that belong together differ in size: {units} units among {members}")
        return Component(members, int(units.pop()))

    found = {"hidden": component(STREAM, width)}
    for number in range(config.num_hidden_layers):
        block = f"model.layers.{number}"
        found[f"ffn.{number}"] = component((f"{block}.mlp.down_proj.weight", 1), width)
        heads = component((f"{block}.self_attn.o_proj.weight", 1), width)
        found[f"heads.{number}"] = heads
        queries = tuple(
            Member(one.name, one.axis, head_dim(config))
            for one in heads.members
            if ".q_proj." in one.name or ".o_proj." in one.name
        )
        found[f"queries.{number}"] = Component(queries, config.num_attention_heads)
    return found
