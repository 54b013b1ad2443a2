"""Answers with a tool's output in them: what is masked, what is read, and that the formulas do not see it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import DataError, RecipeError
from trainers import model
from trainers import policy_gradient as pg
from trainers.batch import IGNORE
from trainers.experience import rows_of
from trainers.iteration import weighted
from trainers.log import read_metrics
from trainers.model import ModelSettings, PackedLM
from trainers.roles import call
from trainers.rollout import Sampler, Sampling
from trainers.tools import Tool, WithTool, calculator, holes, python
from trainers.train import train

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64, "init_std": 0.3}
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21]]
HOW = Sampling(max_tokens=16, samples=4, seed=4)
EASY = {"begin": "", "end": "t", "before": "[", "after": "]", "calls": 2, "most_tokens": 12}
"""A tool that a model of random weights calls often: by any token with a t."""


def said(call):
    """The tool: how long the call was, which no tokenizer makes of nothing."""
    return f"{len(call)} letters"


@pytest.fixture(scope="module")
def tokenizer(packed):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(packed, "tokenizer")))


@pytest.fixture(scope="module")
def lm():
    return model.build(ModelSettings(**SHAPE), vocab_size=284, seq_len=64, seed=3, pad=0, eos=1).eval()


def sampler(lm, tokenizer, slots=64):
    one = Sampler(lm.config, tokenizer, torch.device("cpu"), slots=slots)
    one.take({name: value.detach() for name, value in lm.named_parameters()})
    return one


@pytest.fixture(scope="module")
def answers(lm, tokenizer):
    tool = Tool(name=f"{__name__}:said", **EASY)
    return WithTool(sampler(lm, tokenizer), tokenizer, tool, 64).generate(PROMPTS, HOW)


def pieces(answer, own):
    """The answer's stretches of own tokens, or of a tool's."""
    out, before = [], None
    for token, mine in zip(answer.tokens, answer.own, strict=True):
        if mine == own:
            out = [*out[:-1], [*out[-1], token]] if before == own else [*out, [token]]
        before = mine
    return out


def test_a_tool_answers_each_call_and_the_policy_reads_on(answers, tokenizer):
    assert [(a.prompt, a.sample) for a in answers] == [(p, s) for p in range(4) for s in range(4)]
    called = [a for a in answers if holes(a.own)]
    assert {holes(a.own) for a in called} == {1, 2}
    for answer in answers:
        turns, outputs = pieces(answer, True), pieces(answer, False)
        assert sum(map(len, turns)) <= HOW.max_tokens
        for turn, output in zip(turns, outputs, strict=False):
            text = tokenizer.decode(turn, skip_special_tokens=True)
            assert text.count("t") >= 1
            assert "t" not in tokenizer.decode(turn[:-1], skip_special_tokens=True)
            assert tokenizer.decode(output) == f"[{len(text.partition('t')[0])} letters]"


def test_what_the_policy_wrote_has_the_probability_of_a_whole_forward_pass(answers, lm):
    for answer in answers:
        prompt = PROMPTS[answer.prompt]
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        own = torch.tensor(answer.own)
        torch.testing.assert_close(torch.tensor(answer.log_probs)[own], expected[own], rtol=0, atol=2e-5)
        assert not torch.tensor(answer.log_probs)[~own].any()


def test_neither_slots_nor_neighbours_change_an_answer_of_several_turns(answers, lm, tokenizer):
    tool = Tool(name=f"{__name__}:said", **EASY)
    few = WithTool(sampler(lm, tokenizer, slots=3), tokenizer, tool, 64)
    assert [a.tokens for a in few.generate(PROMPTS, HOW)] == [a.tokens for a in answers]
    alone = few.generate(PROMPTS[2:3], HOW, [2])
    assert [a.tokens for a in alone] == [a.tokens for a in answers if a.prompt == 2]


def test_a_loss_over_holes_and_its_gradient_are_those_without_the_tokens(answers, lm):
    """Rewards, GAE, returns, whitening, PPO's terms, KL and every mean, through the model to its weights."""
    rows = rows_of(PROMPTS, answers, pad=0)
    mask = rows.mask
    own = [sum(answer.own) for answer in answers]
    assert mask.sum(-1).tolist() == own
    assert any(n < len(a.tokens) for n, a in zip(own, answers, strict=True))
    torch.manual_seed(0)
    order = torch.argsort(~mask, dim=-1, stable=True)[:, : max(own)]
    together = mask.gather(-1, order)
    scores, values, moved = torch.randn(len(own)), torch.randn(mask.shape), 0.3 * torch.randn(mask.shape)
    packed = PackedLM(lm, "sdpa")

    def loss(arrange, mask, by):
        log_probs = arrange(-call(packed, rows.batch(range(len(own))), "token_losses"))
        old, reference = (log_probs.detach() + arrange(moved), log_probs.detach() - arrange(moved))
        rewards = pg.kl_rewards(scores, pg.kl_estimate(old, reference, "k1"), mask, 0.1)
        advantages = pg.gae(rewards, arrange(values), mask, 0.99, 0.9)
        returns = pg.gae_target(advantages, arrange(values), mask)
        terms, _ = pg.ppo_terms(log_probs, old, pg.whiten(advantages, mask))
        terms = terms + 0.1 * pg.kl_estimate(log_probs, reference, "k3")
        total, count = weighted(terms, mask, by, 16)
        lm.zero_grad()
        (total / count).backward()
        gradient = torch.cat([p.grad.flatten() for p in lm.parameters()])
        return float(total.detach() / count), float(pg.value_loss(arrange(values), returns, mask)), gradient

    for by in ("tokens", "answers", "constant"):
        holed = loss(lambda x: x, mask, by)
        deleted = loss(lambda x: x.gather(-1, order), together, by)
        assert holed[:2] == pytest.approx(deleted[:2], rel=1e-5)
        torch.testing.assert_close(holed[2], deleted[2], rtol=1e-4, atol=1e-7)
    lm.zero_grad()


def test_no_token_of_a_tool_is_a_target(answers):
    rows = rows_of(PROMPTS, answers, pad=0)
    for i, answer in enumerate(answers):
        start = len(PROMPTS[answer.prompt]) - 1
        targets = rows.targets[i, start : start + len(answer.tokens)].tolist()
        assert targets == [t if own else IGNORE for t, own in zip(answer.tokens, answer.own, strict=True)]
        assert rows.input_ids[i, start + 1 : start + 1 + len(answer.tokens)].tolist() == answer.tokens


def test_two_workers_learn_to_call_the_calculator(recipe, tmp_path, crew, prompts):
    rewards = {"format": {"pattern": r".*\[.*\].*"}}
    objective = {"prompts": prompts, "rewards": rewards, "sampling": {"max_tokens": 6, "samples": 4}}
    objective |= {"tool": {**EASY, "name": "calculator", "most_tokens": 20, "calls": 1}}
    fields = {"trainer": "grpo", "batch_rows": 32, "micro_rows": 16, "workers": 2, "steps": 14, "export": False}
    train(recipe(**fields, objective=objective, schedule={"rate": 4e-2, "warmup": 1}), str(tmp_path), crew=crew)
    lines = [line for line in read_metrics(str(tmp_path)) if "reward" in line]
    first, last = (np.mean([line["reward"] for line in some]) for some in (lines[:3], lines[-3:]))
    assert last > first + 0.2, [round(line["reward"], 2) for line in lines]
    assert all(line["tool_calls"] == pytest.approx(line["reward"]) for line in lines)
    assert max(line["gap"] for line in lines) < 1e-4
    assert all(line["answer_tokens"] <= 6 for line in lines)


def test_tools_say_what_went_wrong():
    assert calculator("2 * (3 + 4)") == "14"
    assert calculator("__import__('os')") == calculator("9**9**9") == "error: not a sum"
    assert python("print(6 * 7)") == "42"
    assert python("print(1)\nprint(1 / 0)") == "1\nerror: ZeroDivisionError: division by zero"
    assert python("while True: print('x' * 100000)", seconds=4).endswith("File too large")
    assert python("import time; time.sleep(9)", seconds=0.5) == "error: timeout"


def test_what_cannot_work_is_refused(lm, tokenizer):
    one = sampler(lm, tokenizer)
    with pytest.raises(RecipeError, match="no tool named 'calculater'; did you mean 'calculator'"):
        WithTool(one, tokenizer, Tool(name="calculater"), 64)
    with pytest.raises(RecipeError, match="has no room"):
        WithTool(one, tokenizer, Tool(most_tokens=8), 64)
    with pytest.raises(DataError, match="16 new ones and 2 outputs of 24 do not fit the model's 64"):
        WithTool(one, tokenizer, Tool(**{**EASY, "most_tokens": 24}), 64).generate(PROMPTS, HOW)


def test_a_prompts_file_names_the_line_that_does_not_fit(recipe, tmp_path, crew):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("short", "long " * 40)))
    objective = {"prompts": str(path), "rewards": {"length": {"most": 0}}, "sampling": {"max_tokens": 6, "samples": 2}}
    with pytest.raises(Exception, match=r"prompts\.jsonl, example 2: .* tokens and 6 new ones do not fit"):
        train(recipe(trainer="grpo", batch_rows=4, workers=1, objective=objective, export=False), str(tmp_path / "out"), crew=crew)  # fmt: skip # noqa: E501
