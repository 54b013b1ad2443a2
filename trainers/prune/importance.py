"""How much a weight, a unit of a component, or a whole block matters: by magnitude, Taylor expansion, or Wanda."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers.attention import pick_attention
from trainers.batch import PackedRows, collate
from trainers.model import PackedLM
from trainers.peft.loramoe import documents_of
from trainers.prune.graph import Component

Importance = Literal["magnitude", "taylor", "wanda"]


@dataclass
class Measured:
    """What a model did on calibration rows, by the name of the linear layer or block."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """‖X_j‖₂ of every input of a linear layer, over all tokens: [in]."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the summed loss, by parameter."""
    influence: dict[int, float] = field(default_factory=dict)
    """1 − mean cosine between a block's input and output. Men et al. 2024 (ShortGPT)."""


def measure(lm: Any, data: PackedRows, rows: int, micro_rows: int, *, gradients: bool) -> Measured:
    """Run `rows` packed rows through a model, padding left out of every figure. The model is left as it was."""
    implementation, cached = lm.config._attn_implementation, lm.config.use_cache
    packed = PackedLM(lm, pick_attention(next(lm.parameters()).device)).eval()
    found, hooks = Measured(), []
    cosines: dict[int, Tensor] = {}
    tokens = 0
    seen: Tensor = torch.zeros(0)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
            squares = (inputs[0].detach()[seen].double() ** 2).sum(0)
            found.inputs[name] = found.inputs.get(name, 0) + squares

        return hook

    def watch_block(number: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            pair = inputs[0].detach()[seen].double(), out.detach()[seen].double()
            cosines[number] = cosines.get(number, 0) + nn.functional.cosine_similarity(*pair, dim=-1).sum()

        return hook

    for name, module in lm.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(watch(name)))
    for number, block in enumerate(lm.get_decoder().layers):
        hooks.append(block.register_forward_hook(watch_block(number)))
    trained = {name: value.requires_grad for name, value in lm.named_parameters()}
    lm.requires_grad_(gradients)
    device = next(lm.parameters()).device
    with torch.set_grad_enabled(gradients):
        for first in range(0, rows, micro_rows):
            batch = collate(data.read(first, min(micro_rows, rows - first))).to(device)
            documents, _ = documents_of(batch.doc_index, batch.targets, batch.doc_index.new_zeros(batch.rows).long())
            seen = documents > 0
            tokens += int(seen.sum())
            loss = packed(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
            if gradients:
                loss.backward()
    for hook in hooks:
        hook.remove()
    for name, value in lm.named_parameters():
        if gradients:
            found.gradients[name] = value.grad if value.grad is not None else torch.zeros_like(value)
        value.grad = None
        value.requires_grad_(trained[name])
    found.inputs = {name: value.sqrt() for name, value in found.inputs.items()}
    found.influence = {number: 1 - float(total) / max(1, tokens) for number, total in cosines.items()}
    lm.set_attn_implementation(implementation)
    lm.config.use_cache = cached
    return found


def weight_scores(name: str, weight: Tensor, by: Importance, measured: Measured) -> Tensor:
    """One number per weight of a linear layer, [out, in]: |W|, |W · ∂L/∂W| (Molchanov et al. 2019), or |W| · ‖X‖₂ per
    input (Sun et al. 2024, Wanda)."""
    if by == "taylor":
        return (weight * measured.gradients[name]).abs()
    if by == "wanda":
        return weight.abs() * measured.inputs[name.removesuffix(".weight")].to(weight)
    return weight.abs()


def unit_scores(component: Component, state: Mapping[str, Tensor], by: Importance, measured: Measured) -> Tensor:
    """One number per unit of a component, [units] float64, summed over all axes that the unit owns.

    magnitude: Σ W². taylor: Σ |Σ W · ∂L/∂W|, the inner sum over the unit's weights of one parameter. wanda: Σ |W| ‖X‖₂
    over the layers that read the unit.
    """
    total = torch.zeros(component.units, dtype=torch.float64)
    for member in component.members:
        weight = state[member.name].double()
        if by == "magnitude":
            each = weight**2
        elif by == "taylor":
            each = weight * measured.gradients[member.name].double()
        elif member.axis == 1 and member.name.removesuffix(".weight") in measured.inputs:
            each = weight.abs() * measured.inputs[member.name.removesuffix(".weight")]
        else:
            continue
        of_units = each.movedim(member.axis, 0).reshape(component.units, -1).sum(1).cpu()
        total += of_units.abs()
    return total


def block_scores(state: Mapping[str, Tensor], layers: int, by: Importance, measured: Measured) -> Tensor:
    """One number per block, [layers]: Σ W², Σ |W · ∂L/∂W|, or (wanda) how much the block turns the stream."""
    if by == "wanda":
        return torch.tensor([measured.influence[number] for number in range(layers)], dtype=torch.float64)
    scores = torch.zeros(layers, dtype=torch.float64)
    for name, value in state.items():
        if name.startswith("model.layers."):
            each = value.double() ** 2 if by == "magnitude" else (value * measured.gradients[name]).double().abs()
            scores[int(name.split(".")[2])] += float(each.sum())
    return scores
