"""One iteration of learning from one's own samples: prompts, answers, their scores, and rows for the next steps.

What GRPO and PPO share. An iteration samples `samples` answers to some prompts, scores them, asks the trainer and the
reference for log-probabilities, and then takes `epochs` × `minibatches` optimiser steps over them. A run may begin at
an iteration, never within one: a checkpoint is saved there, and a lost worker's iteration is done again as a whole.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cluster.errors import DataError
from cluster.settings import Settings, make
from trainers import policy_gradient as pg
from trainers.answers import Encoder, Message, judged, read_examples
from trainers.architecture import positions
from trainers.batch import IGNORE, Batch, StepRows
from trainers.engine import Engine
from trainers.experience import AnswerRows, Experience, rows_of
from trainers.memory import Footprint, token_losses_bytes, weights_of
from trainers.model import PackedLM, load, load_tokenizer
from trainers.objective import Start
from trainers.peft.tune import prepare
from trainers.policy_sampler import EngineSampler, TakesWeights, check_gap, gap
from trainers.reward import load_reward
from trainers.rewards import Scorer
from trainers.roles import Frozen, Role
from trainers.rollout import Sampler, Sampling, decoder_bytes
from trainers.scatter import Scatter
from trainers.tools import Tool, WithTool, holes
from trainers.vllm import VLLM, VLLMSampler


class OnPolicy(Settings):
    """What every algorithm that learns from its own samples is told."""

    prompts: str = Field(description="JSONL or Parquet file: `prompt` (text or messages), and what the rewards read")
    rewards: dict[str, Any] = Field(default_factory=dict, description="rules of trainers/rewards.py and their weights")
    reward_model: str | None = Field(None, description="folder of a trained reward model (trainer: reward)")
    reward_model_weight: float = Field(1.0, description="of its value, beside the rules")
    sampling: dict[str, Any] = Field(default_factory=dict, description="temperature, max_tokens, samples, top_p …")
    minibatches: int = Field(1, gt=0, description="optimiser steps over the answers of one iteration and epoch")
    epochs: int = Field(1, gt=0, description="passes over the answers of one iteration")
    kl: float = Field(0.0, ge=0, description="weight β of the distance to the reference")
    kl_estimate: Literal["k1", "k2", "k3"] = Field("k3", description="see policy_gradient.kl_estimate")
    kl_target: float | None = Field(None, gt=0, description="nats per answer that β is adapted to; None: β is fixed")
    kl_horizon: int = Field(10_000, gt=0, description="answers over which β adapts")
    clip_low: float = Field(0.2, gt=0, lt=1, description="ratios below 1 − clip_low gain nothing")
    clip_high: float = Field(0.2, gt=0, description="ratios above 1 + clip_high gain nothing (0.28 in DAPO)")
    dual_clip: float | None = Field(None, gt=1, description="bound on the loss of a bad token (Ye et al. 2020)")
    entropy: float = Field(0.0, ge=0, description="weight of the mean entropy, which is rewarded")
    stop_kl: float | None = Field(None, gt=0, description="nats per token from the old policy that end the iteration")
    max_gap: float = Field(0.1, gt=0, description="nats per token that sampler and trainer may differ by, on average")
    importance: float | None = Field(
        None, gt=0, description="ceiling of weights π_trainer / π_sampler; None: no weights"
    )
    reference: str = Field("start", description="start: the run's first weights; or a folder")
    validation_prompts: str | None = Field(None, description="held-out prompts, answered greedily at every evaluation")
    slots: int = Field(256, gt=0, description="answers that one rank samples at a time")
    tool: dict[str, Any] | None = Field(
        None, description="that the policy may call, see trainers/tools.py: {name: calculator or python, calls: 4, …}"
    )
    vllm: dict[str, Any] | None = Field(
        None, description="sample by vLLM in an environment of its own: {python: …/bin/python, cache_gib: …}"
    )
    variance_every: int = Field(
        0, ge=0, description="iterations between two reports of every Ψ's gradient variance on the same answers"
    )

    def draws(self) -> Sampling:
        """How answers are drawn."""
        return make(Sampling, self.sampling, "objective.sampling")


@dataclass(frozen=True)
class Prompt:
    """One line of the prompts file."""

    record: Mapping[str, Any]
    ids: list[int]


def read_prompts(path: str, tokenizer: Any) -> list[Prompt]:
    """All prompts of a file, by the tokenizer's chat template. Raises DataError for a line without one."""
    encoder, found = Encoder(tokenizer), []
    for number, record in enumerate(read_examples(path), 1):
        try:
            messages: list[Message] = judged({**record, "label": True, "completion": ""}).prompt
            ids = encoder.before(messages)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, example {number}: no usable `prompt` ({error!r})") from error
        if not messages or not ids:
            raise DataError(f"{path}, example {number}: no `prompt`")
        found.append(Prompt(record, ids))
    if not found:
        raise DataError(f"{path}: holds no prompts")
    return found


def order(first: int, count: int, prompts: int, seed: int) -> list[int]:
    """Which prompts are numbers [first, first + count) of a run: each once per pass, every pass in an order of its own.

    >>> sorted(order(4, 4, 4, 0)), order(2, 3, 4, 0) == order(0, 5, 4, 0)[2:]
    ([0, 1, 2, 3], True)
    """
    out: list[int] = []
    while len(out) < count:
        turn, inside = divmod(first + len(out), prompts)
        out += np.random.default_rng([seed, turn]).permutation(prompts)[inside:].tolist()
    return out[:count]


@dataclass
class Samples:
    """What one rank knows of one iteration's answers. [answers] or [answers, width]; all on the CPU."""

    rows: AnswerRows
    scores: Tensor
    """Rewards of whole answers, without the penalty for distance."""
    lengths: Tensor
    finished: Tensor
    parts: dict[str, Tensor]
    calls: Tensor
    """Of a tool, per answer."""
    seconds: float = 0.0
    """That the rules took."""
    old: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    psis: dict[str, Tensor] = field(default_factory=dict)
    """By `known`, where they are asked for: every Ψ that these answers allow, not whitened, [answers, width]."""

    @property
    def mask(self) -> Tensor:
        return self.rows.mask


class Iterations:
    """The part of an objective that samples, scores and hands out rows; `known` of a subclass says what is learned."""

    def __init__(self, settings: OnPolicy, start: Start):
        self.settings, self.ranks, self.recipe = settings, start.ranks, start.recipe
        self.sampling = settings.draws()
        self.tokenizer = load_tokenizer(start.data.tokenizer)
        self.pad = int(start.data.about["pad_id"])
        self.prompts = self.fitting(settings.prompts, positions(start.lm.config))
        self.held_out = []
        if settings.validation_prompts:
            self.held_out = self.fitting(settings.validation_prompts, positions(start.lm.config))
        self.scorer = Scorer(settings.rewards)
        self.recipe.check_whole_prompts(self.sampling.samples, self.ranks.world)  # `workers: auto` was not known before
        self.per_step = self.recipe.batch_rows // self.sampling.samples
        """Prompts per optimiser step, over all ranks."""
        self.cursor, self.beta = start.cursor, start.state.get("kl", settings.kl)
        self.penalty = self.beta
        """β of the iteration at hand; `beta` is the next one's."""
        self._sampler: EngineSampler | None = None
        self._tool: WithTool | None = None
        self._vllm: VLLMSampler | None = None
        self._moved = [0.0, 0.0]

    def footprint(self, roles: Mapping[str, Role], _tokens: int) -> Footprint:
        """Rows as long as the longest prompt and answer; losses per token, with an entropy six float32 of all logits.

        Beside them judges, the sampler's cache and, where it cannot look at the trainer's weights, its copy of them.
        """
        policy: Any = roles["policy"]
        config, zero, wide = policy.module.lm.config, policy.settings.zero, policy.compute_dtype.itemsize
        longest = max(len(prompt.ids) for prompt in self.prompts) + self.sampling.max_tokens
        width = -(-longest // 8) * 8
        tokens = self.recipe.micro_rows * width
        loss = token_losses_bytes(tokens, config.vocab_size)
        if self.settings.entropy:
            loss = 24.0 * tokens * config.vocab_size
        beside = 4.0 * sum(weights_of(folder) for folder in self.scorer.judges())
        if self.settings.vllm is None:
            if zero == 3 or policy.compute_dtype != policy.dtype:
                beside += wide * sum(getattr(value, "ds_numel", value.numel()) for _, value in policy.parameters())
            if self.ranks.device.type == "cuda":  # there the decoder's buffers stay
                answers = self.per_step // self.ranks.world * self.settings.minibatches * self.sampling.samples
                beside += decoder_bytes(config, min(self.settings.slots, -(-answers // 8) * 8), longest, wide)
        return Footprint(loss, tokens, width, beside)

    def fitting(self, path: str, positions: int) -> list[Prompt]:
        """All prompts of a file. Raises DataError for one that leaves no room for an answer: now, not when it comes."""
        found = read_prompts(path, self.tokenizer)
        for number, prompt in enumerate(found, 1):
            if len(prompt.ids) + self.sampling.max_tokens > positions:
                raise DataError(
                    f"{path}, example {number}: a prompt of {len(prompt.ids)} tokens and {self.sampling.max_tokens} "
                    f"new ones do not fit the model's {positions} positions; shorten max_tokens, or take it out"
                )
        return found

    # ---- what a subclass adds ------------------------------------------------------------------------------------

    def known(self, roles: Mapping[str, Role], samples: Samples) -> dict[str, Tensor]:
        """advantages (and values, returns) of the answers, each [answers, width]. A collective."""
        raise NotImplementedError

    # ---- the iterations ------------------------------------------------------------------------------------------

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        """Steps of one iteration after another. Every rank yields equally many."""
        settings, world = self.settings, self.ranks.world
        while True:
            state = {"kl": self.beta}
            first, count = self.cursor, self.per_step * settings.minibatches
            clock = [time.perf_counter()]
            samples = self.sample(roles["policy"], first)
            clock.append(time.perf_counter() - samples.seconds)
            self.score(roles, samples)
            figures = self.ask(roles, samples)
            known = self.known(roles, samples)
            if settings.variance_every and first // count % settings.variance_every == 0:
                figures |= self.variances(roles["policy"], samples)
            clock.append(time.perf_counter())
            known |= {"old_log_probs": samples.old, "reference_log_probs": samples.reference}
            figures |= {"rollout_seconds": clock[1] - clock[0], "scoring_seconds": clock[2] - clock[1]}
            mine = self.per_step // world * self.sampling.samples
            begins = True
            for epoch in range(settings.epochs):
                turns = np.random.default_rng([self.recipe.seed, first, epoch]).permutation(settings.minibatches)
                for turn in turns.tolist() if epoch else range(settings.minibatches):
                    rows = range(turn * mine, (turn + 1) * mine)
                    yield StepRows(first, first + count, self.cut(samples, rows, known), begins, figures, state)
                    begins = False
                    if self.moved_too_far():
                        break
                else:
                    continue
                break
            self.cursor = first + count

    def sample(self, policy: Any, first: int) -> Samples:
        """This rank's answers to the iteration's prompts: its share of every minibatch. A collective under ZeRO 3."""
        self.refreshed(policy)
        share = self.per_step // self.ranks.world
        numbers: list[int] = []
        for minibatch in range(self.settings.minibatches):
            begin = first + minibatch * self.per_step + self.ranks.rank * share
            numbers += range(begin, begin + share)
        chosen = [self.prompts[order(number, 1, len(self.prompts), self.recipe.seed)[0]] for number in numbers]
        return self.answered(chosen, self.sampling, numbers)

    def refreshed(self, policy: Engine) -> None:
        """Start what samples, and give it the policy's present weights. A collective under ZeRO 3."""
        if self._sampler is None:
            settings, config, device = self.settings, policy.module.lm.config, self.ranks.device
            sampler: TakesWeights
            if settings.vllm is None:
                sampler = own = Sampler(config, self.tokenizer, device, slots=settings.slots)
                if policy.tuning is not None or self.recipe.peft is not None:
                    own.tune(lambda packed: prepare(packed, self.recipe, policy.settings))
            else:
                vllm, dtype = make(VLLM, settings.vllm, "objective.vllm"), policy.compute_dtype
                gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device.type == "cuda" else ""
                sampler = self._vllm = VLLMSampler(config, self.tokenizer, vllm, self.sampling, dtype=dtype, gpu=gpu)
            self._sampler = EngineSampler(policy, sampler)
            if settings.tool is not None:
                tool = make(Tool, settings.tool, "objective.tool")
                self._tool = WithTool(self._sampler, self.tokenizer, tool, positions(config))
        self._sampler.refresh()

    def answered(self, chosen: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]) -> Samples:
        """Sampled answers with what rules say of them."""
        assert self._sampler is not None
        ids = [prompt.ids for prompt in chosen]
        answers = (self._tool or self._sampler).generate(ids, sampling, numbers)
        clock = time.perf_counter()
        texts = [self.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
        values = self.scorer.all([chosen[answer.prompt].record for answer in answers], texts)
        return Samples(
            rows=rows_of(ids, answers, pad=self.pad),
            scores=torch.tensor([self.scorer.total(value) for value in values], dtype=torch.float32),
            lengths=torch.tensor([len(one.tokens) if one.own is None else sum(one.own) for one in answers]).float(),
            finished=torch.tensor([float(answer.finished) for answer in answers]),
            parts={name: torch.tensor([float(value[name]) for value in values]) for name in self.settings.rewards},
            calls=torch.tensor([0.0 if one.own is None else float(holes(one.own)) for one in answers]),
            seconds=time.perf_counter() - clock,
        )

    @torch.no_grad()
    def score(self, roles: Mapping[str, Role], samples: Samples) -> None:
        """Add the reward model's value of each answer, at its last token."""
        if "reward" not in roles:
            return
        values = self.over(roles["reward"], samples, "values")
        at = samples.mask.shape[1] - samples.mask.flip(-1).long().argmax(-1)
        samples.parts["reward_model"] = values.gather(1, at.clamp(max=values.shape[1] - 1)[:, None])[:, 0]
        samples.scores = samples.scores + self.settings.reward_model_weight * samples.parts["reward_model"]

    @torch.no_grad()
    def ask(self, roles: Mapping[str, Role], samples: Samples) -> dict[str, float]:
        """Log-probabilities by trainer and reference; the iteration's figures. Stops the run at too wide a gap."""
        mask = samples.mask
        samples.old = -self.over(roles["policy"], samples, "token_losses") * mask
        samples.reference = samples.old
        if "reference" in roles:
            samples.reference = -self.over(roles["reference"], samples, "token_losses") * mask
        kl = pg.kl_estimate(samples.old, samples.reference, self.settings.kl_estimate) * mask
        tokens, apart, _ = gap(samples.old, samples.rows.sampler_log_probs, mask)
        names = sorted(samples.parts)
        mine = [tokens, apart, float(len(samples.scores)), float(samples.scores.sum()), float(samples.lengths.sum())]
        mine += [float(samples.finished.sum()), float(kl.sum()), float(samples.old.sum()), float(samples.calls.sum())]
        sums = self.ranks.sum(mine + [float(samples.parts[name].sum()) for name in names])
        tokens, apart, count, scores, lengths, finished, distance, log_probs, calls = sums[:9]
        check_gap(apart / tokens, self.settings.max_gap, self.cursor)
        figures = {
            "reward": scores / count, "answer_tokens": lengths / count, "finished": finished / count,
            "kl": distance / count, "kl_weight": self.beta, "sampled_entropy": -log_probs / tokens,
            "gap": apart / tokens,
        }  # fmt: skip
        if self.settings.tool is not None:
            figures["tool_calls"] = calls / count
        figures |= {f"reward_{name}": value / count for name, value in zip(names, sums[9:], strict=True)}
        self.penalty = self.beta
        if self.settings.kl_target is not None and "reference" in roles:
            self.beta = pg.adapted_coefficient(
                self.beta, distance / count, self.settings.kl_target, int(count), self.settings.kl_horizon
            )
        return figures

    @torch.no_grad()
    def variances(self, policy: Any, samples: Samples) -> dict[str, float]:
        """The variance of one answer's gradient by each Ψ, over the answers of all ranks. A collective."""
        sums, n = Scatter(list(samples.psis)), len(samples.scores)
        for begin in range(0, n, self.recipe.micro_rows):
            rows = slice(begin, min(n, begin + self.recipe.micro_rows))
            scores = policy(trimmed(samples.rows.batch(range(rows.start, rows.stop))), "scores")
            sums.add({name: psi[rows, : scores.shape[1]] for name, psi in samples.psis.items()}, scores)
        return {f"variance_{name}": value for name, value in sums.variances(self.ranks.sum(sums.sums())).items()}

    @torch.no_grad()
    def over(self, role: Any, samples: Samples, want: Any) -> Tensor:
        """What a role says of all answers, [answers, width] on the CPU. Equally many calls on every rank.

        Said as the sampler samples: without the dropout or the noise of a tuning method.
        """
        role.eval()
        found = []
        n = len(samples.scores)
        for begin in range(0, n, self.recipe.micro_rows):
            batch = trimmed(samples.rows.batch(range(begin, min(n, begin + self.recipe.micro_rows))))
            values = role(batch, want).float().cpu()
            whole = torch.zeros((batch.rows, samples.mask.shape[1]))
            whole[:, : values.shape[1]] = values
            found.append(whole)
        role.train()
        return torch.cat(found)

    def cut(self, samples: Samples, rows: range, known: Mapping[str, Tensor]) -> list[Batch]:
        """Micro-batches of some answers."""
        size = self.recipe.micro_rows
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [trimmed(samples.rows.experience(list(part), len(part), **known)) for part in parts]

    def moved_too_far(self) -> bool:
        """Whether the policy has left the one that sampled by more than `stop_kl` since the last step. A collective."""
        if self.settings.stop_kl is None:
            return False
        total, tokens = self.ranks.sum(self._moved)
        self._moved = [0.0, 0.0]
        return total / max(tokens, 1.0) > self.settings.stop_kl

    # ---- the policy's loss ---------------------------------------------------------------------------------------

    def policy_terms(self, role: Any, batch: Experience, kl_weight: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of every token [rows, width], with KL, entropy and importance weights; sums to log."""
        settings = self.settings
        surprise = None
        if settings.entropy:
            log = torch.log_softmax(role(batch, "logits").float(), -1)
            surprise = -(log.exp() * log).sum(-1)
            there = batch.to(log.device)
            log_probs = log.gather(-1, there.targets.clamp(min=0)[..., None])[..., 0]
        else:
            log_probs = -role(batch, "token_losses").float()
            there = batch.to(log_probs.device)
        mask = there.mask
        terms, held = pg.ppo_terms(
            log_probs, there.old_log_probs, there.advantages,
            clip_low=settings.clip_low, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        )  # fmt: skip
        if settings.importance is not None:
            terms = terms * pg.importance_weights(there.old_log_probs, there.sampler_log_probs, settings.importance)
        if kl_weight:
            terms = terms + kl_weight * pg.kl_estimate(log_probs, there.reference_log_probs, settings.kl_estimate)
        if surprise is not None:
            terms = terms - settings.entropy * surprise
        moved = pg.kl_estimate(there.old_log_probs, log_probs.detach(), "k3") * mask
        if settings.stop_kl is not None:
            self._moved[0] += float(moved.sum())
            self._moved[1] += float(mask.sum())
        return terms, {"clipped": (held & mask).double().sum(), "moved": moved.sum()} | (
            {"entropy": (surprise.detach() * mask).sum()} if surprise is not None else {}
        )

    # ---- the rest of an objective --------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, float]:
        """Mean reward of greedy answers to held-out prompts. A collective."""
        if not self.held_out:
            return {}
        policy: Any = roles["policy"]
        self.refreshed(policy)
        world = self.ranks.world
        mine = self.held_out[self.ranks.rank :: world] or self.held_out[:1]
        greedy = self.sampling.model_copy(update={"temperature": 0.0, "samples": 1})
        samples = self.answered(mine, greedy, range(len(mine)))
        self.score(roles, samples)
        real = 1.0 if self.held_out[self.ranks.rank :: world] else 0.0
        names = sorted(samples.parts)
        sums = [real * len(mine), real * float(samples.scores.sum())]
        sums += [real * float(samples.parts[name].sum()) for name in names]
        count, total, *parts = self.ranks.sum(sums)
        figures = {"validation_reward": total / count}
        return figures | {f"validation_{name}": value / count for name, value in zip(names, parts, strict=True)}

    def waited(self) -> float:
        return 0.0

    def close(self) -> None:
        """End the engine that samples, where it is another process."""
        if self._vllm is not None:
            self._vllm.close()


def trimmed(batch: Any) -> Any:
    """The batch without the columns behind its longest answer, rounded up to 8."""
    used = (batch.targets != IGNORE).any(0).nonzero()
    last = int(used[-1]) + 2 if len(used) else 1
    width = min(batch.input_ids.shape[1], -(-last // 8) * 8)
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: v[:, :width] for name, v in tensors.items() if isinstance(v, Tensor)})


def weighted(terms: Tensor, mask: Tensor, by: str, longest: int) -> tuple[Tensor, float]:
    """(Σ, count) of token losses: means over tokens, over answers of their means, or over a constant length.

    `answers` is GRPO's 1/|o| within each answer; `constant` divides by answers × the longest possible one (Dr. GRPO).
    """
    kept = torch.where(mask, terms, 0.0)
    if by == "tokens":
        return kept.sum(), float(mask.sum())
    answers = float(mask.any(-1).sum())
    if by == "answers":
        return (kept.sum(-1) / mask.sum(-1).clamp(min=1)).sum(), answers
    return kept.sum(), answers * longest


def share(mask: Tensor, by: str, longest: int) -> float:
    """The count that `weighted` will give, from the mask alone."""
    return float(mask.sum()) if by == "tokens" else float(mask.any(-1).sum()) * (longest if by == "constant" else 1)


def policy_roles(settings: OnPolicy, start: Start) -> dict[str, Role]:
    """The policy, and where they are needed the frozen reference and the reward model."""
    temperature = settings.draws().temperature
    device, needed = start.ranks.device, settings.kl > 0
    first = copy.deepcopy(start.lm) if needed and settings.reference == "start" else None
    # rows are short and their width changes: the mask of SDPA needs no compilation per width
    packed = PackedLM(start.lm, "sdpa")
    packed.temperature = temperature
    prepare(packed, start.recipe, start.engine)
    policy = Engine(packed, start.engine, start.ranks, start.recipe.micro_rows)
    roles: dict[str, Role] = {"policy": policy}
    if needed:
        frozen = PackedLM(first if first is not None else load(settings.reference), "sdpa")
        frozen.temperature = temperature
        roles["reference"] = Frozen(frozen, device, policy.dtype)
    if settings.reward_model is not None:
        roles["reward"] = Frozen(load_reward(settings.reward_model), device, policy.dtype)
    return roles
