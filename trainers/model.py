"""A Llama-shaped transformers model over packed rows, and its export."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cluster import storage
from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from trainers import architecture, cross_entropy, scatter
from trainers.attention import Attention, document_starts, documents_mask, register


class ModelSettings(Settings):
    """The shape of a new model; the vocabulary comes from the data set."""

    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    layers: int = Field(4, gt=0, description="decoder blocks")
    heads: int = Field(4, gt=0, description="query heads")
    kv_heads: int | None = Field(None, gt=0, description="key and value heads (grouped-query attention); None: heads")
    intermediate_size: int | None = Field(
        None, gt=0, description="width of the SwiGLU block; None: 8/3 of hidden_size, rounded up to a multiple of 64"
    )
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary positions")
    max_positions: int | None = Field(None, gt=0, description="longest sequence stated in the export; None: seq_len")
    tie_embeddings: bool = Field(True, description="one matrix for input and output embeddings")
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of RMSNorm")

    def ffn(self) -> int:
        """The SwiGLU width in force."""
        return self.intermediate_size or -(-(8 * self.hidden_size) // (3 * 64)) * 64

    def parameters(self, vocab_size: int) -> int:
        """Number of weights of the model."""
        head = self.hidden_size // self.heads
        attention = self.hidden_size * head * (2 * self.heads + 2 * (self.kv_heads or self.heads))
        block = attention + 3 * self.hidden_size * self.ffn() + 2 * self.hidden_size
        return (
            self.layers * block + self.hidden_size + vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        )

    def check(self) -> None:
        """Refuse shapes that cannot be built. Raises RecipeError."""
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise RecipeError(
                f"model: hidden_size {self.hidden_size} over {self.heads} heads gives "
                f"{self.hidden_size / self.heads:g} per head; rotary positions need an even whole number"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise RecipeError(f"model: {self.heads} heads cannot share {self.kv_heads} kv_heads evenly")


def build(settings: ModelSettings, *, vocab_size: int, seq_len: int, seed: int, pad: int, eos: int) -> nn.Module:
    """A new transformers Llama in float32 with seeded weights; the caller's random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings.check()
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.ffn(),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        max_position_embeddings=settings.max_positions or seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=settings.tie_embeddings,
        initializer_range=settings.init_std,
        rms_norm_eps=settings.norm_eps,
        pad_token_id=pad,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model from a transformers folder (an export, or any local model); of a reward model's folder
    the reward model, with its head. Raises DataError."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    made = architecture.read_config(folder, "model").get("architectures") or [""]
    kind: Any = (
        AutoModelForSequenceClassification if made[0].endswith("ForSequenceClassification") else AutoModelForCausalLM
    )
    try:
        lm, told = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: no model that transformers opens: {error}") from error
    if lost := sorted(told["missing_keys"]):  # transformers would draw them at random
        raise DataError(f"{folder}: its files lack {len(lost)} of the weights that config.json asks for: {lost[:3]}")
    return lm


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a local folder, or of one on S3. Raises DataError."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as near:
        here = folder
        if storage.is_s3(folder):
            here = near
            for name, found in storage.find(folder):
                storage.copy(found.path, os.path.join(near, name))
        if not Path(here).is_dir():
            raise DataError(f"{folder}: no such folder; expected one that AutoTokenizer.from_pretrained opens")
        try:
            return AutoTokenizer.from_pretrained(here)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: no tokenizer that transformers opens: {error}") from error


class PackedLM(nn.Module):
    """A causal language model that takes packed rows and keeps documents apart.

    Calls the transformers backbone with a document mask and computes the loss without full logits.
    """

    def __init__(self, lm: Any, attention: Attention = "sdpa", loss_chunk: int = 4096):
        super().__init__()
        register()
        self.lm = lm
        self.loss_chunk = loss_chunk
        self.tuning: Any = None
        """What a method of trainers/peft or trainers/prune does around the forward pass (its Tuning), or None."""
        self.sequence_group: Any = None
        """The ranks that share the tokens of a row, where batches are stretches of rows."""
        self.temperature = 1.0
        """Of the softmax: logits are divided by it. Answers sampled at another one are also judged at it."""
        config = lm.config.to_dict()
        architecture.refuse(config, "PackedLM")
        self._window = architecture.window(config)
        lm.config.use_cache = False
        self._attend_by("sdpa")
        self._check_attention()
        self._attend_by(attention)

    def _attend_by(self, attention: Attention) -> None:
        self.attention = attention
        self.lm.set_attn_implementation(f"corpusmill_{attention}")

    @torch.no_grad()
    def _check_attention(self) -> None:
        """Refuse a class whose attention is its own code: whether a document sees another one is tried out."""
        if self.lm.device.type == "meta":
            return
        training = self.lm.training
        self.lm.eval()
        ids = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]], device=self.lm.device)
        index = torch.tensor([[0, 0, 1, 1]] * 2, dtype=torch.int32, device=self.lm.device)
        first, second = self.decode(ids, ids.new_tensor([[0, 1, 0, 1]] * 2), index, ids).last_hidden_state[:, 2:]
        self.lm.train(training)
        if (first - second).abs().max() > 2e-2 * first.abs().max():
            raise DataError(
                f"{type(self.lm).__name__}: a document sees the one before it: this class has an attention of its own, "
                "which heeds no document mask; only transformers' own classes train here"
            )

    def decode(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        doc_index: Tensor,
        targets: Tensor,
        parts: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What transformers' decoder says of packed rows, each document alone; `kwargs` are further ones of its own.

        Positions that a tuning method puts in front are in it. Raises DataError where documents would see each other.
        """
        self._check(position_ids, doc_index)
        lm, shared = self.lm, doc_index.shape != input_ids.shape
        architecture.check_arguments(lm.config.model_type, varlen=self.attention == "varlen", shared=shared)
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        if self.attention == "varlen":
            if self.tuning is not None:
                raise RecipeError("engine: attention: varlen does not go with a tuning method; use flex or sdpa")
            starts, length = document_starts(doc_index), doc_index.shape[1]
            inputs |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": length, "max_length_k": length}
        elif self.tuning is None:
            inputs["attention_mask"] = documents_mask(doc_index, self.attention)
        else:
            inputs = self.tuning.arguments(self, inputs, doc_index, targets, parts)
        if shared:
            inputs["sequence_group"] = self.sequence_group
        borders: Any = inputs.get("attention_mask", inputs.get("cu_seq_lens_q"))
        borders.documents_apart = True
        return lm.get_decoder()(**inputs, **kwargs, use_cache=False)

    def _check(self, position_ids: Tensor | None, doc_index: Tensor | None) -> None:
        """Refuse rows and models with which documents would see each other, or see less than they should."""
        if position_ids is None or doc_index is None:
            raise DataError("packed rows need position_ids and doc_index: without them documents see each other")
        now, ours = self.lm.config._attn_implementation, f"corpusmill_{self.attention}"
        if now != ours:
            raise DataError(f"attention was switched from {ours!r} to {now!r}, by which documents see each other")
        if self._window:
            _must(
                (position_ids < self._window).all(),
                f"a document is longer than the model's sliding_window of {self._window:,} tokens: packed attention "
                "looks back over whole documents; cut them to that length",
            )
        if position_ids.shape != doc_index.shape:  # a stretch of rows does not know where it lies
            return
        begins = torch.ones_like(doc_index, dtype=torch.bool)
        begins[:, 1:] = doc_index[:, 1:] != doc_index[:, :-1]
        due = torch.where(begins, 0, nn.functional.pad(position_ids[:, :-1], (1, 0)) + 1)
        _must((position_ids == due).all(), "position_ids must begin at 0 in every document and rise by 1")

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        doc_index: Tensor,
        targets: Tensor,
        want: Literal["loss", "token_losses", "misses", "logits", "scores"] = "loss",
        parts: Tensor | None = None,
    ) -> Tensor:
        """All inputs [rows, seq_len], `parts` [rows] (see Batch). Of a stretch of rows doc_index alone is whole.

        Returns by `want`: the sum of −log p(target) (scalar), the same per position [rows, seq_len] with 0 where there
        is no target, 1 per position whose target is not the likeliest token, logits [rows, seq_len, vocabulary], or
        sketched gradients of log p(target) with respect to the output layer [rows, seq_len, SIZE²] (see scatter.py).
        """
        lm: Any = self.lm
        # a method may have put positions in front
        hidden = self.decode(input_ids, position_ids, doc_index, targets, parts).last_hidden_state
        hidden = hidden[:, -input_ids.shape[1] :]
        if self.temperature != 1.0:
            hidden = hidden / self.temperature
        head = lm.get_output_embeddings()
        if want == "logits":
            return head(hidden)  # type: ignore[no-any-return]
        flat, goals = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        if want == "loss":
            return cross_entropy.loss_sum(flat, head.weight, goals, self.loss_chunk)
        if want == "scores":
            return scatter.sketched_scores(flat, head.weight, goals, self.loss_chunk).unflatten(0, targets.shape)
        each = cross_entropy.misses if want == "misses" else cross_entropy.token_losses
        return each(flat, head.weight, goals, self.loss_chunk).reshape(targets.shape)


def _must(right: Tensor, what: str) -> None:
    """Raise DataError on a CPU; on a GPU, for which nobody waits, the kernel of this check ends the process."""
    if right.device.type != "cpu":
        torch._assert_async(right, what)  # type: ignore[no-untyped-call]
    elif not right:
        raise DataError(what)


def export(lm: Any, state: dict[str, Tensor], tokenizer: str | None, folder: str) -> None:
    """Write what AutoModelForCausalLM and AutoTokenizer open: config, safetensors, tokenizer. Published by rename.

    `state` holds full weights by transformers' names, whatever `lm` itself still has of them under ZeRO-3.
    """
    from transformers import AutoConfig

    aside = f"{folder}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    config = json.loads(lm.config.to_json_string(use_diff=False))
    config["use_cache"], config["dtype"] = True, str(dtype).removeprefix("torch.")
    config = {key: value for key, value in config.items() if not key.startswith("_") and value is not None}
    kind = config.pop("model_type")
    AutoConfig.for_model(kind, **config).save_pretrained(aside)
    about = json.loads(Path(aside, "config.json").read_text())
    about["architectures"] = [type(lm).__name__]
    Path(aside, "config.json").write_text(json.dumps(about, indent=2) + "\n")
    if tokenizer is not None and getattr(lm, "generation_config", None) is not None:
        from trainers.rollout import end_tokens

        # generate and vLLM then stop where answers that were learned end, whatever the model's EOS was
        ends = sorted(end_tokens(lm.config, load_tokenizer(tokenizer)))
        how = lm.generation_config.to_diff_dict() | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
        Path(aside, "generation_config.json").write_text(json.dumps(how, indent=2) + "\n")
    from safetensors.torch import save_file

    save_file(
        {name: value.detach().to("cpu").contiguous().clone() for name, value in state.items()},
        os.path.join(aside, "model.safetensors"),
        metadata={"format": "pt"},
    )
    if tokenizer is not None:
        for name, found in storage.find(tokenizer):
            storage.copy(found.path, os.path.join(aside, name)) if name not in os.listdir(aside) else None
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def flops_per_token(parameters: int, embedding: int, layers: int, hidden: int, seq_len: int) -> float:
    """Training FLOPs of one token: 6 per weight that multiplies, and causal attention counted in full.

    6 (N − embedding) + 6 · layers · hidden · seq_len (scores and values, forward and backward, half of the square);
    `embedding` is the input table, which is looked up, not multiplied (0 when it is tied to the output).
    Chowdhery et al. 2022 (PaLM), appendix B, without recomputation.
    """
    return 6.0 * (parameters - embedding) + 6.0 * layers * hidden * seq_len
