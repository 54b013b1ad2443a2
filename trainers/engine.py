"""The only import of DeepSpeed: ZeRO, precision, clipping, and the one place where losses are normalised.

Everything a checkpoint needs goes through `state` and `load_state`, tensor by tensor and whole: so a checkpoint
knows neither the number of ranks nor the ZeRO stage that wrote it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cluster.errors import DataError, RecipeError, RunError
from cluster.settings import Settings
from trainers.batch import Batch
from trainers.objective import Loss
from trainers.ranks import Ranks
from trainers.roles import Want, call, exact_tables


class EngineSettings(Settings):
    """How a model is trained: sharding, precision, optimiser."""

    zero: Literal[0, 1, 2, 3] = Field(1, description="what is sharded: 1 optimiser, 2 + gradients, 3 + weights")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 on CPU")
    clip: float = Field(1.0, ge=0, description="global gradient norm limit; 0 switches clipping off")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW moment decay")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decoupled decay, matrices only")
    offload_optimizer: bool = Field(False, description="optimiser states in host memory (ZeRO 1 to 3)")
    offload_weights: bool = Field(False, description="weights in host memory (ZeRO 3)")
    recompute: Literal["none", "full", "selective"] = Field(
        "none", description="activation checkpointing: every block, or every second one"
    )
    compile: bool = Field(False, description="torch.compile each block (ZeRO 0 to 2)")
    attention: Literal["auto", "sdpa", "flex", "varlen"] = Field(
        "auto", description="kernel of packed attention; auto: flex on CUDA, sdpa with a block mask on CPU"
    )
    sequence: int = Field(
        1, gt=0, description="Ulysses: so many ranks share the tokens of every row (pretrain and sft)"
    )
    bucket: int = Field(50_000_000, gt=0, description="elements per communication bucket")

    def check(self) -> None:
        """Refuse combinations that cannot work. Raises RecipeError."""
        if self.offload_weights and self.zero != 3:
            raise RecipeError(f"engine: offload_weights needs zero: 3, found zero: {self.zero}")
        if self.offload_optimizer and self.zero == 0:
            raise RecipeError("engine: offload_optimizer needs zero: 1, 2 or 3")
        if self.compile and self.zero == 3:
            raise RecipeError("engine: compile with zero: 3 breaks the graph at every gathered weight; use zero: 2")


@dataclass(frozen=True)
class Stepped:
    """What an optimiser step reports: the gradient norm before clipping, and figures of a tuning method."""

    grad_norm: float
    figures: dict[str, float] = field(default_factory=dict)


class Engine:
    """A trained role: a model under DeepSpeed. Use within a joined process group.

    One optimiser step is: `begin(total count)`, then `backward(loss)` for each micro-batch, then `step(rate)`.
    """

    def __init__(self, model: nn.Module, settings: EngineSettings, ranks: Ranks, micro_rows: int):
        settings.check()
        self.settings, self.ranks = settings, ranks
        deepspeed = _deepspeed()
        precision = settings.precision
        if precision == "auto":
            precision = "bf16" if ranks.device.type == "cuda" else "fp32"
        # DeepSpeed's stage 0 has no float32 accumulation for bf16 weights: there, weights stay float32 under autocast
        self.dtype = torch.bfloat16 if precision == "bf16" and settings.zero > 0 else torch.float32
        self._autocast = precision == "bf16" and settings.zero == 0
        parameters = sum(value.numel() for value in model.parameters())
        initial = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        if not initial:
            raise RecipeError("engine: no parameter is trainable")
        with exact_tables(model):
            model.to(device=ranks.device, dtype=self.dtype)
        recompute(model, settings.recompute)
        if settings.compile or ranks.device.type == "cuda":
            # one worker trains many shapes in a sweep, each with and without gradients; past the limit of 8, blocks
            # (on GPUs flex attention and the loss too) would silently run uncompiled
            torch._dynamo.config.recompile_limit = 128
        if settings.compile:
            for block in model.lm.get_decoder().layers:  # type: ignore[union-attr, operator]
                block.compile(dynamic=False)
        optimizer = torch.optim.AdamW(
            _groups(model, settings.weight_decay),
            lr=0.0,
            betas=settings.betas,
            eps=settings.eps,
            fused=ranks.device.type == "cuda" and not settings.offload_optimizer,
        )
        self.engine: Any
        config = self._config(micro_rows, parameters, sum(value.numel() for value in initial.values()))
        with exact_tables(model):
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, dist_init_required=False
            )
        self.module: Any = self.engine.module
        self.tuning: Any = getattr(self.module, "tuning", None)
        self._basic: Any = optimizer
        self._expected, self._summed, self._micro = 0.0, 0.0, 0
        self._micro_total = 0
        self.rate_factor = 1.0
        """What this role's learning rate is multiplied by."""
        self._make_optimizer_state()
        if self.dtype != torch.float32:
            # the float32 masters were made from rounded weights: give them the exact ones
            for name, value in self._trained():
                self._set(name, value, "weight", initial[name])

    def _config(self, micro_rows: int, parameters: int, trained: int) -> dict[str, Any]:
        s = self.settings
        bucket = min(s.bucket, trained)  # DeepSpeed allocates it whole at every backward pass
        zero: dict[str, Any] = {
            "stage": s.zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "contiguous_gradients": True,
            "overlap_comm": False,
        }
        if s.zero == 3:
            zero |= {
                "stage3_param_persistence_threshold": 10_000,
                "stage3_prefetch_bucket_size": min(s.bucket, parameters),
                # DeepSpeed's own limits of 10⁹ would keep all weights of a model of that size whole
                "stage3_max_live_parameters": 2 * s.bucket,
                "stage3_max_reuse_distance": 2 * s.bucket,
            }
        if s.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.ranks.device.type == "cuda"}
        if s.offload_weights:
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.ranks.device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": micro_rows,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": s.clip,
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            # DeepSpeed switches off whatever autocast it is called under
            "torch_autocast": {
                "enabled": self._autocast,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 40,
            "wall_clock_breakdown": False,
        }

    # ---- forward, backward, step -------------------------------------------------------------------------------

    def __call__(self, batch: Batch, want: Want = "loss") -> Tensor:
        return call(self.engine, batch.to(self.ranks.device), want, tuned=self.tuning is not None)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return torch.bfloat16 if self._autocast else self.dtype

    def eval(self) -> None:
        """Forward passes of an evaluation follow."""
        self.engine.eval()

    def train(self) -> None:
        """Forward passes of training follow."""
        self.engine.train()

    def close(self) -> None:
        """Free all memory; nothing can be asked of the engine afterwards.

        DeepSpeed's hooks hold parameters and its optimizer in cycles that no garbage collection finds, so a worker
        would keep the models of all its runs.
        """
        self.engine.destroy()
        optimizer, self.engine.optimizer = self.engine.optimizer, None
        vars(optimizer).clear()
        vars(self._basic).clear()
        for value in self.module.parameters():
            vars(value).clear()
            value.data = value.new_empty(0)

    def begin(self, count: float, micro_batches: int) -> None:
        """Start an optimiser step whose losses will sum `count` items over all its micro-batches and ranks."""
        if not count > 0:
            raise DataError("an optimiser step without a single target: every row of it is masked or empty")
        self._expected, self._summed = count, 0.0
        self._micro, self._micro_total = 0, micro_batches
        if self.tuning is not None:
            self.tuning.begin(self.optimizer_steps())

    def backward(self, loss: Loss) -> None:
        """Accumulate the gradient of loss.total / count of the whole step.

        DeepSpeed averages over ranks, so the factor `world` undoes that: the result is the gradient of
        Σ over micro-batches and ranks of total, divided by the announced count, however the batch was cut.
        A tuning method's penalties come on top: those per token are part of the sum, those of the weights count once
        per optimiser step.
        """
        self._micro += 1
        self._summed += loss.count
        self.engine.set_gradient_accumulation_boundary(self._micro == self._micro_total)
        total = loss.total * (self.ranks.world / self._expected)
        if self.tuning is not None:
            of_tokens, of_weights = self.tuning.penalties()
            total = total + of_tokens * (self.ranks.world / self._expected) + of_weights / self._micro_total
        self.engine.backward(total, scale_wrt_gas=False)
        if self._micro < self._micro_total:
            self.engine.step()

    def step(self, rate: float) -> Stepped:
        """Clip and apply the accumulated gradient at a learning rate. A collective."""
        if self._micro != self._micro_total:
            raise RunError(f"optimiser step after {self._micro} of {self._micro_total} micro-batches")
        if self.ranks.world == 1 and abs(self._summed - self._expected) > 1e-6 * self._expected:
            raise RunError(f"losses summed {self._summed:g} items, {self._expected:g} were announced")
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * self.rate_factor
        norm = None
        if self.settings.zero == 0:
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.engine.step()
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        figures = self.tuning.figures() if self.tuning is not None else {}
        return Stepped(float(norm) if norm is not None else float("nan"), figures)

    # ---- whole tensors in and out --------------------------------------------------------------------------------

    KINDS = ("weight", "exp_avg", "exp_avg_sq")

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """(transformers' name, parameter); tied ones once. The value may be empty under ZeRO-3."""
        for name, value in self.module.named_parameters():
            yield name.removeprefix("lm."), value

    def _trained(self) -> Iterator[tuple[str, Any]]:
        """(name, parameter) of what is optimised."""
        for name, value in self.module.named_parameters():
            if value.requires_grad:
                yield name, value

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of persistent buffers: the masks of pruning. Models themselves have none."""
        for path, module in self.module.named_modules():
            for name, value in module._buffers.items():
                if value is not None and name not in module._non_persistent_buffers_set:
                    yield f"{path}.{name}".removeprefix("."), value

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, name, float32 tensor) of all trained weights, both AdamW moments, and masks. A collective: all ranks
        walk it.

        The tensor is only valid until the next one is asked for.
        """
        for name, value in self._trained():
            for kind in self.KINDS:
                yield kind, name.removeprefix("lm."), self._get(value, kind)
        for name, value in self.masks():
            yield "weight", name.removeprefix("lm."), value.float()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole float32 gradient) between the last backward pass and the step. A collective."""
        from deepspeed import utils

        for name, value in self._trained():
            gradient = value.grad if self.settings.zero == 0 else utils.safe_get_full_grad(value)
            yield name.removeprefix("lm."), gradient.float()

    def load_state(self, read: Callable[[str, str], Tensor], optimizer_steps: int | None) -> None:
        """Set all weights and, unless `optimizer_steps` is None, moments; `read(kind, name)` gives the tensor.

        A collective: every rank reads every tensor.
        """
        for full, value in self._trained():
            for kind in self.KINDS if optimizer_steps is not None else self.KINDS[:1]:
                self._set(full, value, kind, read(kind, full.removeprefix("lm.")))
        for full, value in self.masks():
            value.copy_(read("weight", full.removeprefix("lm.")))
        for state in self._basic.state.values() if optimizer_steps is not None else ():
            state["step"].fill_(optimizer_steps)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the transformers model's weights in the training dtype, frozen ones and masks too, and of
        a tuning method's own, for export. A collective.

        What else lies beside the model in the trained module (projections of a distillation) is left out.
        """
        for name, value in self.module.named_parameters():
            if name.startswith(("lm.", "tuning.")):
                yield name.removeprefix("lm."), self._get(value, "weight").to(self.dtype)
        for name, value in self.masks():
            yield name.removeprefix("lm."), value

    def trained_parameters(self) -> int:
        """How many parameters are optimised, over all ranks."""
        return sum(getattr(value, "ds_numel", value.numel()) for _, value in self._trained())

    def optimizer_steps(self) -> int:
        """Optimiser steps taken, as AdamW's bias correction counts them."""
        for state in self._basic.state.values():
            if "step" in state:
                return int(state["step"])
        return 0

    def _get(self, value: Any, kind: str) -> Tensor:
        from deepspeed import utils, zero

        if not value.requires_grad:
            if self.settings.zero < 3:
                return value.detach()  # type: ignore[no-any-return]
            with zero.GatheredParameters([value]):
                return value.detach().clone()  # type: ignore[no-any-return]
        if self.settings.zero == 0:
            return (value.detach() if kind == "weight" else self._basic.state[value][kind]).float()
        if kind == "weight":
            return utils.safe_get_full_fp32_param(value)  # type: ignore[no-any-return]
        return utils.safe_get_full_optimizer_state(value, kind)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _set(self, name: str, value: Any, kind: str, tensor: Tensor) -> None:
        from deepspeed import utils, zero

        shape = value.ds_shape if hasattr(value, "ds_shape") else value.shape
        if tuple(tensor.shape) != tuple(shape):
            raise DataError(f"{name}: {kind} has shape {tuple(tensor.shape)}, the model needs {tuple(shape)}")
        tensor = tensor.to(self.ranks.device, torch.float32)
        if self.settings.zero == 0:
            (value if kind == "weight" else self._basic.state[value][kind]).copy_(tensor)
            return
        if self.settings.zero < 3:
            if kind != "weight":
                utils.safe_set_full_optimizer_state(value, tensor, kind)
                return
            utils.safe_set_full_fp32_param(value, tensor)
            value.copy_(tensor)
            return
        # DeepSpeed's own whole-tensor setter fails where the last rank's part is padded
        size = value.ds_tensor.numel()
        mine = torch.zeros(size, device=tensor.device)
        part = tensor.reshape(-1)[size * self.ranks.rank : size * (self.ranks.rank + 1)]
        mine[: part.numel()] = part
        if kind != "weight":
            utils.safe_set_local_optimizer_state(value, mine, kind)
            return
        utils.safe_set_local_fp32_param(value, mine)
        with zero.GatheredParameters([value], modifier_rank=0):
            value.copy_(tensor)

    def _make_optimizer_state(self) -> None:
        """Make AdamW's moments now: it would make them at the first step, too late for a resumed run.

        (DeepSpeed also links only the first parameter group to moments that are made during a step.)
        """
        wrapped = self.engine.optimizer
        if self.settings.zero == 0:
            masters = [p for group in self._basic.param_groups for p in group["params"]]
        elif self.settings.zero == 3:
            masters = wrapped.fp32_partitioned_groups_flat
        elif hasattr(wrapped, "fp32_groups_flat_partition"):
            masters = wrapped.fp32_groups_flat_partition
        else:
            masters = wrapped.single_partition_of_fp32_groups
        fused = self._basic.defaults.get("fused")
        for tensor in masters:
            self._basic.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(tensor, dtype=torch.float32),
                "exp_avg_sq": torch.zeros_like(tensor, dtype=torch.float32),
            }
        if self.settings.zero in (1, 2):
            wrapped._lazy_init_hp_params_optimizer_state()


def recompute(model: Any, how: Literal["none", "full", "selective"]) -> None:
    """Activation checkpointing: keep only the input of every block (full) or of every second one (selective)."""
    if how == "none":
        return
    model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    for index, block in enumerate(model.lm.get_decoder().layers):
        block.gradient_checkpointing = how == "full" or index % 2 == 0


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for matrices, none for norms and biases."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _deepspeed() -> Any:
    """Import DeepSpeed quietly, its shared-memory all-reduce off.

    That operator serves tensor-parallel inference on CPUs only, and compiling it at first use takes over a minute.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler
    from deepspeed.utils import logger

    # ZeRO imports the Muon optimizer to see that it is not asked for, and Muon's decorators load torch's whole compiler
    decorator, compiler.compile = compiler.compile, lambda: lambda function: function
    with contextlib.suppress(ImportError):  # versions without it
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    compiler.compile = decorator

    logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False) if deepspeed.comm.is_initialized() else (
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    )
    return deepspeed
