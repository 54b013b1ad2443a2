"""How much memory a device will need, by arithmetic, before anything is allocated: all roles of a run together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


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
    """One chunk of logits with its gradient, and the float32 gradient of the output matrix; or as a Footprint says."""

    @property
    def total(self) -> float:
        """The peak when no other model is there."""
        return peak([self])


@dataclass(frozen=True)
class Footprint:
    """What an objective's own loss and sampler need on a device, in bytes, where it is not that of next tokens."""

    loss: float
    """At the peak of the policy's backward pass, beside activations; or while a frozen model is asked before it."""
    tokens: int | None = None
    """Positions of a micro-batch, where the objective makes its own rows."""
    width: int | None = None
    """Positions of a row, likewise."""
    beside: float = 0.0
    """What is there all the time: what samples."""


def peak(trained: Sequence[Estimate], beside: float = 0.0) -> float:
    """Bytes at the peak of a step over models that are trained together, with `beside` there all the time.

    All forward passes come first, then one backward pass after the other, in which activations go while gradients
    come: so a peak is at one end of one of them, with the gradients of those before it and the activations of those
    behind it.
    """
    begins = [one.held + one.activations + one.loss for one in trained]
    moments = [
        sum(one.gradients for one in trained[:place]) + max(begins[place], one.gradients) + sum(begins[place + 1 :])
        for place, one in enumerate(trained)
    ]
    return beside + sum(one.weights + one.optimizer for one in trained) + max(moments)


def token_losses_bytes(tokens: int, vocabulary: int, chunk: int = 4096) -> float:
    """Of a loss per token: when a chunk of logits is computed again for its gradient, three float32 of its size."""
    return 12.0 * min(chunk, tokens) * vocabulary


def weights_of(folder: str) -> int:
    """How many weights lie in a transformers folder, tied ones once; only the headers of its files are read."""
    from safetensors import safe_open

    count = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def asked_bytes(model: Any, tokens: int, chunk: int = 4096) -> float:
    """Of a frozen language model that is asked for losses per token: one block's widest moment, or a chunk's logits.

    Three values of the hidden and three of the feed-forward width; logits with two float32 of their size.
    """
    config, wide = model.lm.config, next(model.parameters()).element_size()
    block = wide * tokens * 3.0 * (config.hidden_size + config.intermediate_size)
    return max(block, (wide + 8.0) * min(chunk, tokens) * config.vocab_size)


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
    loss_bytes: float | None = None,
    masks: int = 0,
) -> Estimate:
    """Peak bytes per device for `tokens` positions per forward pass; `kv` is the width of all key heads together.

    `accumulates`: an optimiser step has several micro-batches. `live`: weights that ZeRO 3 keeps whole at most.
    `loss_bytes`: of another loss than that of next tokens (Footprint.loss). `masks`: the width of rows whose attention
    takes a mask of all pairs, which every block keeps.

    States, per weight: bf16 with ZeRO 0 trains float32 weights under autocast (4 + 2 for the cast copies, gradient 4,
    moments 8); with ZeRO 1 to 3 weights 2, master and moments 12 / world, gradient 2 for the one in flight and 4
    for the float32 sum (4 / world from ZeRO 2 on), which ZeRO 1 and 3 hold all the time. float32: weights 4,
    gradients 4, moments 8, and a second copy as master from ZeRO 1 on. ZeRO 3 divides the weights too, and gathers
    them where there are several devices. Gradients of the step before are gone when a step begins.

    Of `parameters` only `trained` (None: all) have gradients, moments and masters.

    Activations, bytes per token and block, from what lives at the peak (allocations traced on a GPU, a transformers
    Llama): bf16 20 h + 4 kv + 8 f, compiled 12 h + 4 kv + 6 f, because cheap operations are computed again; under
    autocast the residual stream is float32: 30 h + 4 kv + 8 f, compiled 16 h + 4 kv + 6 f; float32 throughout
    32 h + 8 kv + 16 f, compiled 24 h + 8 kv + 12 f. With full recomputation the input alone, and one whole block. The
    last norm: 8 h.
    """
    share = 1.0 / world
    trained = parameters if trained is None else trained
    wide = 2.0 if bf16 else 4.0
    stream = 2.0 if bf16 and zero > 0 else 4.0  # bytes of a value of the residual stream
    if not bf16:
        block = 24.0 * hidden + 8 * kv + 12 * ffn if compiled else 32.0 * hidden + 8 * kv + 16 * ffn
    elif zero == 0:
        block = 16.0 * hidden + 4 * kv + 6 * ffn if compiled else 30.0 * hidden + 4 * kv + 8 * ffn
    else:
        block = 12.0 * hidden + 4 * kv + 6 * ffn if compiled else 20.0 * hidden + 4 * kv + 8 * ffn
    block = (block + wide * masks) * tokens
    kept = {"none": layers * block, "full": layers * stream * hidden * tokens + block}
    kept["selective"] = (layers // 2) * (block + stream * hidden * tokens) + block
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
            weights = wide * (parameters * share + (min(live, parameters) if world > 1 else 0))
    if offload_optimizer:
        optimizer = 0.0
    if offload_weights:
        weights = wide * min(live, parameters)
    summed = accumulates or zero == 3 or (zero == 1 and bf16 and not offload_optimizer)
    held = 4.0 * trained * (share if zero >= 2 else 1.0) if summed else 0.0
    chunk = min(loss_chunk, tokens)
    head = 4.0 * vocabulary * hidden + chunk * vocabulary * (2 * wide + 4.0) + wide * tokens * hidden
    activations = kept[recompute] + 8.0 * hidden * tokens
    return Estimate(weights, gradients, held, optimizer, activations, head if loss_bytes is None else loss_bytes)
