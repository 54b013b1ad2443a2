"""Answers sampled from the weights that are being trained: KV cache, slots that are refilled as answers end.

One protocol, `generate(prompts) -> answers`, so that an objective does not know what samples. What an answer says does
not depend on its neighbours in the batch, on the number of slots or of ranks: every answer draws from its own stream
of random numbers, keyed by (seed, number of the prompt, number of the sample).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cluster.errors import DataError
from cluster.settings import Settings
from trainers.answers import turn_end
from trainers.architecture import head_dim, positions
from trainers.cache import Cache, cached_attention
from trainers.model import PackedLM


class Sampling(Settings):
    """How answers are drawn."""

    temperature: float = Field(1.0, ge=0, description="of the softmax; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this probability (Holtzman 2020)")
    top_k: int = Field(0, ge=0, description="only the k likeliest tokens; 0: all")
    max_tokens: int = Field(64, gt=0, description="longest answer, in tokens")
    samples: int = Field(1, gt=0, description="answers per prompt")
    stop: tuple[str, ...] = Field((), description="an answer ends after any of these strings, as after EOS")
    seed: int = Field(0, ge=0, description="of the draws")


@dataclass(frozen=True)
class Answer:
    """One sampled continuation."""

    prompt: int
    """Index into the prompts that were given."""
    sample: int
    tokens: list[int]
    """With the EOS, when it ended with one."""
    log_probs: list[float]
    """log p of each token under softmax(logits / temperature), before top-k and top-p; at temperature 0 of logits."""
    finished: bool
    """False when it was cut at max_tokens."""
    own: list[bool] | None = None
    """Which tokens the policy chose, None: all. The others are what a tool said, with log-probability 0."""


class Rollouts(Protocol):
    """What samples."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[int] | None = None,
        most: Sequence[int] | None = None,
    ) -> list[Answer]:
        """`samples` answers per prompt, ordered by (prompt, sample).

        `numbers` name the prompts in the random streams (None: their indices); `most` bounds each prompt's answers
        instead of max_tokens.
        """
        ...


class Sampler:
    """A transformers causal LM that samples. Its weights may be another model's, taken over by `take`."""

    def __init__(self, config: Any, tokenizer: Any, device: torch.device, *, slots: int = 64, ahead: int | None = None):
        """`slots` answers are decoded at once; the tokenizer gives EOS and reads stop strings.

        `ahead` tokens are drawn per answer before the host looks whether it has ended (None: 8 on CUDA, where such a
        step is one replayed graph of kernels, else 1); what is drawn behind an end is thrown away.
        """
        from transformers import AttentionInterface, AutoModelForCausalLM

        if slots < 1:
            raise DataError(f"a sampler needs at least one slot, found {slots}")
        AttentionInterface.register("corpusmill_cached", cached_attention)
        config = copy.deepcopy(config)
        with torch.random.fork_rng(devices=[]):
            self.lm: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        self.lm.set_attn_implementation("corpusmill_cached")
        self.tokenizer, self.slots, self.device = tokenizer, slots, device
        self.ends = end_tokens(config, tokenizer)
        self.tuning: Any = None
        self.ahead = ahead if ahead is not None else 8 if device.type == "cuda" else 1
        self._decoder: _Decoder | None = None
        self.steps = 0
        """Forward passes of one token per slot so far."""

    def tune(self, attach: Callable[[PackedLM], None]) -> None:
        """Sample as a tuned model does: `attach` changes the model as the trained one was, before `take`."""
        packed = PackedLM(self.lm)
        attach(packed)
        self.tuning = packed.tuning
        self.lm.set_attn_implementation("corpusmill_cached")
        packed.eval().requires_grad_(False)

    def _front(self) -> int:
        """Positions of the cache that a tuning method's vectors take, before every prompt."""
        soft = self.tuning.in_front() if self.tuning is not None else None
        return 0 if soft is None else len(soft)

    def take(self, weights: dict[str, Tensor]) -> None:
        """Use these tensors as weights, without copying them. Names as in transformers, tied ones once; those of a
        tuning method as in checkpoints."""
        of_tuning = {name: weights.pop(name) for name in list(weights) if name.startswith("tuning.")}
        if of_tuning:
            self.tuning.load_state_dict({name.removeprefix("tuning."): v for name, v in of_tuning.items()}, assign=True)
            self.tuning.to(self.device).requires_grad_(False)
        if self._decoder is not None and self._decoder.captured():
            mine = {**dict(self.lm.named_parameters()), **dict(self.lm.named_buffers())}
            if all(name in mine for name in weights):
                for name, tensor in weights.items():  # captured kernels read where the old weights lie
                    if mine[name].data_ptr() != tensor.data_ptr():
                        mine[name].data.copy_(tensor)
                return
        wrong = self.lm.load_state_dict(weights, strict=False, assign=True)
        self.lm.tie_weights()
        tied = set(getattr(self.lm, "all_tied_weights_keys", None) or ())
        lost = [name for name in wrong.missing_keys if name not in tied]
        if lost or wrong.unexpected_keys:
            raise DataError(f"sampler: weights missing {lost}, not known {wrong.unexpected_keys}")
        self.lm.to(self.device).requires_grad_(False)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        numbers: Sequence[int] | None = None,
        most: Sequence[int] | None = None,
    ) -> list[Answer]:
        """See `Rollouts.generate`. A prompt that has several answers at a time is read once."""
        if not prompts:
            return []
        limits = list(most) if most is not None else [sampling.max_tokens] * len(prompts)
        longest = check_fit(prompts, limits, positions(self.lm.config))
        names = list(numbers) if numbers is not None else list(range(len(prompts)))
        work = _Work(prompts, limits, names, sampling, self.tokenizer, self.ends, self._front())
        if self.ahead > 1:
            return self._generate_ahead(work, longest)
        slots = min(self.slots, len(work.requests))
        weight = self.lm.get_input_embeddings().weight
        cache = Cache(self.lm.config, slots, work.front + longest, self.device, weight.dtype)
        while work.running():
            if work.should_refill(slots):
                self._fill(cache, work, slots)
            else:
                slots = self._shrink(cache, work, slots)
                self._advance(cache, work, slots)
        return work.answers()

    def _generate_ahead(self, work: _Work, longest: int) -> list[Answer]:
        """The same answers, `ahead` tokens at a time with cache and buffers that stay where they are."""
        slots = self.slots if self.device.type == "cuda" else min(self.slots, len(work.requests))
        slots = min(slots, -(-len(work.requests) // 8) * 8)
        positions = work.front + longest + self.ahead
        decoder = self._decoder
        if decoder is None or not decoder.serves(slots, positions, work.sampling):
            self._decoder = None  # its memory is needed for the next one
            decoder = self._decoder = _Decoder(self, slots, positions, work.sampling)
        while work.running():
            if work.should_refill(slots):
                self._fill(decoder.cache, work, slots)
                continue
            tokens, log_probs = decoder.run(work, self.ahead)
            self.steps += self.ahead
            for step in range(self.ahead):
                busy = [slot for slot in range(slots) if work.slot[slot] is not None]
                work.add(busy, [tokens[step][slot] for slot in busy], [log_probs[step][slot] for slot in busy])
        return work.answers()

    def _fill(self, cache: Cache, work: _Work, slots: int) -> None:
        """Read the prompts of the next answers into free slots, and draw their first tokens."""
        taken = work.take_next(slots)
        unique = list(dict.fromkeys(work.requests[request][0] for _, request in taken))
        row = {prompt: i for i, prompt in enumerate(unique)}
        lengths = torch.tensor([len(work.prompts[prompt]) for prompt in unique], device=self.device)
        ids = torch.zeros((len(unique), int(lengths.max())), dtype=torch.long)
        for i, prompt in enumerate(unique):
            ids[i, : len(work.prompts[prompt])] = torch.tensor(work.prompts[prompt])
        read = ids.to(self.device)
        if work.front:
            words = self.lm.get_input_embeddings()(read)
            read = torch.cat([self.tuning.in_front().to(words.dtype).expand(len(unique), -1, -1), words], 1)
        width = read.shape[1]
        source = torch.tensor([row[work.requests[request][0]] for _, request in taken], device=self.device)
        cache.fill(torch.tensor([slot for slot, _ in taken], device=self.device), source)
        causal = torch.ones((width, width), dtype=torch.bool, device=self.device).tril()[None, None]
        positions = torch.arange(width, device=self.device).expand(len(unique), -1)
        hidden = self._pass(read, positions, causal, cache)
        last = hidden[torch.arange(len(unique), device=self.device), work.front + lengths - 1]
        logits = self.lm.get_output_embeddings()(last)[source]
        self._draw(logits, work, [slot for slot, _ in taken])

    def _advance(self, cache: Cache, work: _Work, slots: int) -> None:
        """One more token for every slot in use."""
        self.steps += 1
        at = torch.tensor(work.positions(slots), device=self.device)
        span = int(at.max()) + 1
        cache.extend(at, span)
        seen = (torch.arange(span, device=self.device)[None] <= at[:, None])[:, None, None]
        last = torch.tensor(work.last_tokens(slots), device=self.device)
        hidden = self._pass(last[:, None], at[:, None], seen, cache)
        busy = [slot for slot in range(slots) if work.slot[slot] is not None]
        self._draw(self.lm.get_output_embeddings()(hidden[busy, 0]), work, busy)

    def _pass(self, read: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Hidden states of tokens [rows, new], or of vectors [rows, new, hidden]."""
        decoder = self.lm.get_decoder()
        if self.tuning is not None:
            positions = positions + self.tuning.shift
        given = {"inputs_embeds" if read.is_floating_point() else "input_ids": read}
        return decoder(  # type: ignore[no-any-return]
            **given, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _draw(self, logits: Tensor, work: _Work, busy: list[int]) -> None:
        tokens, log_probs = draw(logits, work.sampling, torch.tensor(work.uniforms(busy), device=self.device))
        work.add(busy, tokens.tolist(), log_probs.tolist())

    def _shrink(self, cache: Cache, work: _Work, slots: int) -> int:
        """When nothing waits and half of the slots are idle, go on with the busy ones alone."""
        busy = [slot for slot in range(slots) if work.slot[slot] is not None]
        if work.waiting() or 2 * len(busy) > slots:
            return slots
        cache.keep(torch.tensor(busy, device=self.device))
        work.slot = {new: work.slot[old] for new, old in enumerate(busy)}
        return len(busy)


class _Decoder:
    """One token for every slot, over buffers that keep their place: on CUDA a graph of kernels, replayed.

    Decoding a small model is bound by launching its kernels one by one; a graph is launched at once. One graph is
    captured per length of attention, in steps of SPAN positions, when it is first needed.
    """

    SPAN = 128

    def __init__(self, sampler: Sampler, slots: int, positions: int, sampling: Sampling):
        self.sampler, self.slots, self.sampling = sampler, slots, sampling
        device = sampler.device
        self.positions = -(-positions // self.SPAN) * self.SPAN
        dtype = sampler.lm.get_input_embeddings().weight.dtype
        self.cache = Cache(sampler.lm.config, slots, self.positions, device, dtype)
        self.last = torch.zeros(slots, dtype=torch.long, device=device)
        self.at = torch.zeros(slots, dtype=torch.long, device=device)
        self.uniform = torch.zeros(slots, dtype=torch.float64, device=device)
        self.log_probs = torch.zeros(slots, dtype=torch.float32, device=device)
        self._graphs: dict[int, Any] = {}
        self._pool: Any = None

    def captured(self) -> bool:
        """Whether graphs hold on to the present weights."""
        return bool(self._graphs)

    def serves(self, slots: int, positions: int, sampling: Sampling) -> bool:
        """Whether these buffers and graphs do for another rollout."""
        cuts = [(s.temperature, s.top_k, s.top_p) for s in (sampling, self.sampling)]
        return slots == self.slots and positions <= self.positions and cuts[0] == cuts[1]

    def run(self, work: _Work, ahead: int) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probabilities, each [ahead][slots]; those of idle slots mean nothing."""
        device, slots = self.sampler.device, self.slots
        places = work.positions(slots)
        self.at.copy_(torch.tensor(places))
        self.last.copy_(torch.tensor(work.last_tokens(slots)))
        uniforms = torch.from_numpy(work.uniforms_ahead(slots, ahead)).to(device)
        tokens = torch.empty((ahead, slots), dtype=torch.long, device=device)
        log_probs = torch.empty((ahead, slots), dtype=torch.float32, device=device)
        span = min(self.positions, -(-(max(places) + ahead) // self.SPAN) * self.SPAN)
        for step in range(ahead):
            self.uniform.copy_(uniforms[step])
            self._replay(span)
            tokens[step], log_probs[step] = self.last, self.log_probs
        return tokens.tolist(), log_probs.tolist()

    def _replay(self, span: int) -> None:
        if self.sampler.device.type != "cuda":
            self._step(span)
            return
        if span not in self._graphs:
            self._capture(span)
        self._graphs[span].replay()

    def _capture(self, span: int) -> None:
        """Warm up on another stream, as capturing asks for, then capture; the buffers are put back."""
        kept = self.last.clone(), self.at.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(span)
                self.last.copy_(kept[0])
                self.at.copy_(kept[1])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(span)
        self._pool = graph.pool()
        self._graphs[span] = graph
        self.last.copy_(kept[0])
        self.at.copy_(kept[1])

    def _step(self, span: int) -> None:
        """Read `last` at `at`, draw by `uniform`; `last`, `log_probs` and `at` are then those of the new tokens."""
        sampler = self.sampler
        self.cache.extend(self.at, span)
        seen = (torch.arange(span, device=sampler.device)[None] <= self.at[:, None])[:, None, None]
        hidden = sampler._pass(self.last[:, None], self.at[:, None], seen, self.cache)
        logits = sampler.lm.get_output_embeddings()(hidden[:, 0])
        tokens, log_probs = draw(logits, self.sampling, self.uniform)
        self.last.copy_(tokens)
        self.log_probs.copy_(log_probs)
        self.at.add_(1).clamp_(max=self.positions - 1)


def decoder_bytes(config: Any, slots: int, longest: int, wide: int) -> float:
    """Of a decoder that stays: keys and values of all slots, and a draw's numbers over the vocabulary, some of them
    float64. `longest`: tokens of a prompt and its answer; `wide`: bytes of a weight."""
    room = -(-(longest + 8) // _Decoder.SPAN) * _Decoder.SPAN
    cache = 2.0 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * room * wide
    return slots * (cache + config.vocab_size * (wide + 24.0))


class _Work:
    """Which answer lies in which slot, what is done, and what waits."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: list[int],
        names: list[int],
        sampling: Sampling,
        tokenizer: Any,
        ends: set[int],
        front: int = 0,
    ):
        self.front = front
        self.prompts, self.limits, self.sampling = prompts, limits, sampling
        self.tokenizer, self.ends = tokenizer, ends
        self.requests = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(sampling.samples)]
        self.tokens: list[list[int]] = [[] for _ in self.requests]
        self.log_probs: list[list[float]] = [[] for _ in self.requests]
        self.finished = [False] * len(self.requests)
        self.slot: dict[int, int | None] = {}
        self._next = 0
        keys = [np.array([sampling.seed, names[prompt] << 16 | sample], np.uint64) for prompt, sample in self.requests]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        longest = max((len(text.encode()) for text in sampling.stop), default=0)
        self._tail = longest + 3  # a token holds a byte or more, and a cut character up to three

    def waiting(self) -> bool:
        return self._next < len(self.requests)

    def running(self) -> bool:
        return self.waiting() or any(request is not None for request in self.slot.values())

    def should_refill(self, slots: int) -> bool:
        """Refill an eighth of the slots at a time: reading one prompt costs nearly as much as reading some."""
        free = sum(self.slot.get(slot) is None for slot in range(slots))
        left = len(self.requests) - self._next
        return left > 0 and (free == slots or free >= min(left, max(1, slots // 8)))

    def take_next(self, slots: int) -> list[tuple[int, int]]:
        """(slot, request) pairs that begin now."""
        taken = []
        for slot in range(slots):
            if self.slot.get(slot) is None and self.waiting():
                self.slot[slot] = self._next
                taken.append((slot, self._next))
                self._next += 1
            else:
                self.slot.setdefault(slot, None)
        return taken

    def positions(self, slots: int) -> list[int]:
        """Where each slot's last token lies; an idle slot writes to position 0, which the next prompt overwrites."""
        held = [self.slot[slot] for slot in range(slots)]
        begun = [None if r is None else self.front + len(self.prompts[self.requests[r][0]]) for r in held]
        return [0 if r is None or b is None else b + len(self.tokens[r]) - 1 for r, b in zip(held, begun, strict=True)]

    def last_tokens(self, slots: int) -> list[int]:
        held = [self.slot[slot] for slot in range(slots)]
        return [0 if r is None else self.tokens[r][-1] for r in held]

    def uniforms(self, busy: list[int]) -> list[float]:
        """The next number in [0, 1) of each answer's own stream."""
        return [self._streams[request].random() for slot in busy if (request := self.slot[slot]) is not None]

    def uniforms_ahead(self, slots: int, ahead: int) -> np.ndarray:
        """The next numbers of each slot's answer, float64 [ahead, slots]; idle slots have ½."""
        out = np.full((ahead, slots), 0.5)
        for slot in range(slots):
            request = self.slot[slot]
            if request is not None:
                out[:, slot] = self._streams[request].random(ahead)
        return out

    def add(self, busy: list[int], tokens: list[int], log_probs: list[float]) -> None:
        """One drawn token per busy slot; an answer that ends frees its slot."""
        for slot, token, log_prob in zip(busy, tokens, log_probs, strict=True):
            request = self.slot[slot]
            assert request is not None
            self.tokens[request].append(token)
            self.log_probs[request].append(log_prob)
            self.finished[request] = token in self.ends or self._stopped(request)
            if self.finished[request] or len(self.tokens[request]) >= self.limits[self.requests[request][0]]:
                self.slot[slot] = None

    def _stopped(self, request: int) -> bool:
        if not self.sampling.stop:
            return False
        text = self.tokenizer.decode(self.tokens[request][-self._tail :], skip_special_tokens=True)
        return any(stop in text for stop in self.sampling.stop)

    def answers(self) -> list[Answer]:
        return [
            Answer(prompt, sample, self.tokens[i], self.log_probs[i], self.finished[i])
            for i, (prompt, sample) in enumerate(self.requests)
        ]


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens by the inverse of the cumulated distribution at `uniform`, and their log-probabilities.

    logits [rows, vocabulary], uniform float64 [rows] in [0, 1) → int64 [rows], float32 [rows]. Each row depends on
    itself alone.
    """
    log_probs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), -1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probs = log_probs.exp()
        if 0 < sampling.top_k < probs.shape[-1]:
            least = probs.topk(sampling.top_k, -1).values[:, -1:]
            probs = probs * (probs >= least)
        if sampling.top_p < 1.0:
            ordered, order = probs.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            kept = before < sampling.top_p * ordered.sum(-1, keepdim=True)
            probs = torch.zeros_like(probs).scatter(-1, order, ordered * kept)
        sums = probs.double().cumsum(-1)
        whole = sums[:, -1:]
        goal = torch.minimum(uniform[:, None].double() * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        tokens = torch.searchsorted(sums, goal, right=True)[:, 0]
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]


def end_tokens(config: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: EOS, and what ends a turn of a model that chats."""
    eos = config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    if (turn := turn_end(tokenizer)) in tokenizer.get_vocab():
        ends.add(tokenizer.convert_tokens_to_ids(turn))
    return ends - {None}


def check_fit(prompts: Sequence[Sequence[int]], most: Sequence[int], positions: int) -> int:
    """Tokens of the longest prompt with an answer of `most`. Raises DataError for an empty one, and for what is longer
    than the model reads."""
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) < 1:
        raise DataError(f"prompt {lengths.index(0)} is empty; give at least one token")
    whole = [length + limit for length, limit in zip(lengths, most, strict=True)]
    at = whole.index(max(whole))
    if whole[at] > positions:
        raise DataError(
            f"a prompt of {lengths[at]} tokens and {most[at]} new ones do not fit the model's {positions} positions; "
            "shorten max_tokens, or take such prompts out"
        )
    return whole[at]
