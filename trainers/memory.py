"""How much memory a device will need, by arithmetic, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device at the peak of a step."""

    weights: float
    gradients: float
    """All of them, at the end of a backward pass."""
    held: float
    """Those that are there already when it begins: the sums of the micro-batches before, or a fixed buffer."""
    optimizer: float
    """AdamW's moments and the float32 master weights."""
    activations: float
    loss: float
    """One chunk of logits with its gradient, and the float32 gradient of the output matrix."""

    @property
    def total(self) -> float:
        """Activations go while gradients come, so the peak is at one end of the backward pass."""
        return self.weights + self.optimizer + max(self.held + self.activations + self.loss, self.gradients)


def estimate(
    *,
    parameters: int,
    layers: int,
    hidden: int,
    kv: int,
    ffn: int,
    vocabulary: int,
    tokens: int,
    zero: int,
    world: int,
    bf16: bool,
    recompute: Literal["none", "full", "selective"] = "none",
    compiled: bool = False,
    accumulates: bool = False,
    live: int = 100_000_000,
    loss_chunk: int = 4096,
    offload_optimizer: bool = False,
    offload_weights: bool = False,
    trained: int | None = None,
) -> Estimate:
    """Peak bytes per device for `tokens` positions per forward pass; `kv` is the width of all key heads together.

    `accumulates`: an optimiser step has several micro-batches. `live`: weights that ZeRO 3 keeps whole at most.

    States, per weight: bf16 with ZeRO 0 trains float32 weights under autocast (4 + 2 for the cast copies, gradient 4,
    moments 8); with ZeRO 1 to 3 weights 2, master and moments 12 / world, gradient 2 for the one in flight and 4
    for the float32 sum (4 / world from ZeRO 2 on). float32: weights 4, gradients 4, moments 8, and a second copy as
    master from ZeRO 1 on. ZeRO 3 divides the weights too. Gradients of the step before are gone when a step begins.

    Of `parameters` only `trained` (None: all) have gradients, moments and masters.

    Activations, bytes per token and block in bf16, from what autograd keeps (counted by saved-tensor hooks on a
    transformers Llama): 20 h + 4 kv + 8 f, under autocast 30 h + 4 kv + 8 f; compiled 14 h + 6 kv + 6 f, because cheap
    operations are computed again. With full recomputation 2 h, and one whole block.
    """
    share = 1.0 / world
    trained = parameters if trained is None else trained
    wide = 2.0 if bf16 else 4.0
    block: float = (30 if bf16 and zero == 0 else 20) * hidden + 4 * kv + 8 * ffn
    if compiled:
        block = 14 * hidden + 6 * kv + 6 * ffn
    block *= tokens * wide / 2
    kept = {"none": layers * block, "full": layers * wide * hidden * tokens + block}
    kept["selective"] = (layers // 2) * (block + wide * hidden * tokens) + block
    if zero == 0:
        weights = parameters * (6.0 if bf16 else 4.0)
        gradients, optimizer = 4.0 * trained, 8.0 * trained
    else:
        weights = wide * parameters
        gradients = (wide + 4.0) * trained if bf16 else 4.0 * trained
        if zero >= 2:
            gradients = 4.0 * trained * share + wide * trained / layers
        optimizer = 12.0 * trained * share
        if zero == 3:
            weights = wide * (parameters * share + min(live, parameters))
    if offload_optimizer:
        optimizer = 0.0
    if offload_weights:
        weights = wide * min(live, parameters)
    held = 4.0 * trained * (share if zero >= 2 else 1.0) if accumulates or zero == 3 else 0.0
    chunk = min(loss_chunk, tokens)
    head = 4.0 * vocabulary * hidden + chunk * vocabulary * (wide + 4.0) + wide * tokens * hidden
    return Estimate(weights, gradients, held, optimizer, kept[recompute], head)
