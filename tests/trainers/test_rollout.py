"""Sampling against transformers' own generation, against the trainer's forward pass, and against the distribution."""

import math
from pathlib import Path

import pytest
import torch

from cluster.errors import DataError
from trainers import model
from trainers.model import ModelSettings
from trainers.rollout import Sampler, Sampling, draw

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64, "init_std": 0.3}
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21], [30, 31, 32, 33], [40], [50, 51, 52]]


@pytest.fixture(scope="module")
def tokenizer(packed):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(packed, "tokenizer")))


@pytest.fixture(scope="module")
def lm():
    return model.build(ModelSettings(**SHAPE), vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).eval()


@pytest.fixture(scope="module")
def sampler(lm, tokenizer):
    def make(slots, ends=None):
        one = Sampler(lm.config, tokenizer, torch.device("cpu"), slots=slots)
        one.take({name: value.detach() for name, value in lm.named_parameters()})
        one.ends |= set(ends or ())
        return one

    return make


ENDS = range(1, 300, 12)
"""Tokens that end an answer, so that answers differ much in length."""


def test_greedy_answers_are_those_of_transformers(lm, sampler):
    found = sampler(3).generate(PROMPTS, Sampling(temperature=0, max_tokens=12))
    for prompt, answer in zip(PROMPTS, found, strict=True):
        made = lm.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False)  # fmt: skip # noqa: E501
        assert answer.tokens == made[0, len(prompt) :].tolist()
        assert answer.finished == (answer.tokens[-1] == 1)


def test_neither_slots_nor_neighbours_change_an_answer(sampler):
    how = Sampling(max_tokens=20, samples=3, temperature=0.9, top_p=0.95, top_k=50, seed=4)
    whole = sampler(64, ENDS).generate(PROMPTS, how)
    assert len({len(a.tokens) for a in whole}) > 4
    assert [(a.prompt, a.sample) for a in whole] == [(p, s) for p in range(7) for s in range(3)]
    for slots in (1, 4, 8):
        assert [a.tokens for a in sampler(slots, ENDS).generate(PROMPTS, how)] == [a.tokens for a in whole]
    alone = sampler(2, ENDS).generate(PROMPTS[4:5], how, numbers=[4])
    assert [a.tokens for a in alone] == [a.tokens for a in whole if a.prompt == 4]
    other = sampler(64, ENDS).generate(PROMPTS, how.model_copy(update={"seed": 5}))
    assert [a.tokens for a in other] != [a.tokens for a in whole]


def test_log_probabilities_are_those_of_a_whole_forward_pass(lm, sampler):
    for answer in sampler(4, ENDS).generate(PROMPTS, Sampling(max_tokens=15, samples=2, temperature=0.7, top_k=20)):
        prompt = PROMPTS[answer.prompt]
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.log_probs), expected, rtol=0, atol=2e-5)


def test_short_answers_do_not_wait_for_long_ones(sampler):
    one, how = sampler(4, ENDS), Sampling(max_tokens=30, samples=6)
    lengths = [len(answer.tokens) for answer in one.generate(PROMPTS, how)]
    batched = sum(max(lengths[i : i + 4]) - 1 for i in range(0, len(lengths), 4))
    assert one.steps < 0.7 * batched


def test_draws_follow_the_distribution_and_its_cuts():
    torch.manual_seed(0)
    logits, n = torch.randn(1, 12), 40_000
    uniform = torch.rand(n, dtype=torch.float64)
    probs = (logits / 0.8).softmax(-1)[0]

    def shares(**changes):
        tokens, log_probs = draw(logits.expand(n, -1), Sampling(temperature=0.8, **changes), uniform)
        torch.testing.assert_close(log_probs, probs.log()[tokens], rtol=0, atol=1e-5)
        return tokens.bincount(minlength=12) / n

    def assert_follows(found, expected):
        se = (expected * (1 - expected) / n).sqrt()
        assert ((found - expected).abs() <= 4 * se + 1e-9).all(), (found, expected)

    assert_follows(shares(), probs)
    order = probs.argsort(descending=True)
    top = torch.zeros(12).index_put((order[:3],), probs[order[:3]])
    assert_follows(shares(top_k=3), top / top.sum())
    kept = int((probs[order].cumsum(0) < 0.6).sum()) + 1
    nucleus = torch.zeros(12).index_put((order[:kept],), probs[order[:kept]])
    assert_follows(shares(top_p=0.6), nucleus / nucleus.sum())
    edge = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    ends, _ = draw(torch.tensor([[-1e9, 0.0, 0.0, -1e9]]).expand(2, -1), Sampling(), edge)
    assert ends.tolist() == [1, 2]


def test_an_answer_ends_after_its_stop_string(sampler, tokenizer):
    free = sampler(4).generate(PROMPTS, Sampling(max_tokens=20, seed=2))
    text = tokenizer.decode(free[2].tokens, skip_special_tokens=True)
    stop = text[5:7]
    stopped = sampler(4).generate(PROMPTS, Sampling(max_tokens=20, seed=2, stop=(stop,)))[2]
    assert stopped.finished
    assert stopped.tokens == free[2].tokens[: len(stopped.tokens)]
    assert stop in tokenizer.decode(stopped.tokens)
    assert stop not in tokenizer.decode(stopped.tokens[:-1])


def test_what_does_not_fit_is_refused(sampler):
    with pytest.raises(DataError, match="a prompt of 3 tokens and 62 new ones do not fit the model's 64"):
        sampler(2).generate([[1, 2, 3]], Sampling(max_tokens=62))
    with pytest.raises(DataError, match="prompt 1 is empty"):
        sampler(2).generate([[1], []], Sampling())
    assert sampler(2).generate([], Sampling()) == []


def test_drawing_ahead_of_the_host_changes_no_answer(lm, tokenizer, sampler):
    weights = {name: value.detach() for name, value in lm.named_parameters()}
    for how in (
        Sampling(max_tokens=20, samples=3, temperature=0.9, top_p=0.95, top_k=50, seed=4),
        Sampling(max_tokens=13, temperature=0),
    ):
        whole = sampler(64, ENDS).generate(PROMPTS, how)
        for slots, ahead in ((8, 4), (64, 8), (8, 3)):
            one = Sampler(lm.config, tokenizer, torch.device("cpu"), slots=slots, ahead=ahead)
            one.take(weights)
            one.ends |= set(ENDS)
            for _ in range(2):  # the second time over the cache that the first one left
                found = one.generate(PROMPTS, how)
                assert [a.tokens for a in found] == [a.tokens for a in whole]
                assert [a.finished for a in found] == [a.finished for a in whole]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_graphs_draw_what_single_steps_draw_and_follow_new_weights(lm, tokenizer):
    device, how = torch.device("cuda"), Sampling(max_tokens=20, samples=3, seed=4)
    ahead, single = (Sampler(lm.config, tokenizer, device, slots=8, ahead=n) for n in (4, 1))
    for scale in (1.0, 1.1):
        weights = {name: (value.detach() * scale).to(device) for name, value in lm.named_parameters()}
        found = []
        for one in (ahead, single):
            one.take({name: value.clone() for name, value in weights.items()})
            one.ends |= set(ENDS)
            found.append([a.tokens for a in one.generate(PROMPTS, how)])
        same = sum(a == b for a, b in zip(*found, strict=True))
        assert same >= len(found[0]) - 1  # a draw on the very edge between two tokens may fall either way
