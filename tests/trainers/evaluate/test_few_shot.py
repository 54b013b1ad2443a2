import json

import numpy as np
import pytest
import torch

from cluster.errors import DataError
from trainers import model
from trainers.evaluate import few_shot
from trainers.evaluate.task import read_task
from trainers.model import ModelSettings, PackedLM
from trainers.ranks import Ranks
from trainers.roles import Frozen

ALONE = Ranks(0, 1, torch.device("cpu"))
ITEMS = [
    {"split": "train", "prompt": "the cat sat on the", "choices": ["mat", "moon"], "answer": 0},
    {"split": "train", "prompt": "the hat of the", "choices": ["flat", "cat"], "answer": 1},
    {"prompt": "the cat was", "choices": ["fat", "a hat of the mat", "on"], "answer": 0},
    {"prompt": "the mat was ", "choices": ["cat", "flat"], "answer": 1},
]


@pytest.fixture(scope="module")
def tokenizer(packed):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(packed / "tokenizer")


def _write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


@pytest.fixture
def task(tmp_path):
    return read_task(_write(tmp_path / "cats.jsonl", ITEMS))


def _lm():
    settings = ModelSettings(hidden_size=32, layers=2, heads=4)
    return model.build(settings, vocab_size=300, seq_len=128, seed=2, pad=0, eos=1).double()


@pytest.mark.parametrize("shots", [0, 2])
def test_packed_scores_are_those_of_every_text_alone(task, tokenizer, shots):
    asked = few_shot.requests(task, tokenizer, shots=shots, seq_len=128)
    role = Frozen(PackedLM(_lm()), torch.device("cpu"), torch.float64)
    scores = few_shot.score(role, asked, seq_len=128, micro_rows=2, ranks=ALONE)
    plain = _lm()
    for request, got in zip(asked, scores, strict=True):
        ids = torch.tensor([request.ids])
        with torch.no_grad():
            log_p = plain(ids).logits[0].log_softmax(-1)
        expected = sum(float(log_p[t - 1, request.ids[t]]) for t in range(request.start, len(request.ids)))
        assert got == pytest.approx(expected, abs=1e-5)


def test_a_continuation_is_the_text_behind_the_prompt(task, tokenizer):
    for request in few_shot.requests(task, tokenizer, shots=0, seq_len=128):
        item = task.test[request.item]
        assert tokenizer.decode(request.ids[request.start :]).strip() == item["choices"][request.choice]
        assert tokenizer.decode(request.ids[: request.start]) == item["prompt"].rstrip()


def test_shots_come_from_the_train_split_and_yield_to_the_row(task, tokenizer):
    (first, *_) = few_shot.requests(task, tokenizer, shots=2, seq_len=128)
    text = tokenizer.decode(first.ids)
    assert "the cat sat on the mat\n\n" in text
    assert "the hat of the cat\n\n" in text
    (short, *_) = few_shot.requests(task, tokenizer, shots=2, seq_len=len(first.ids) - 2)
    assert tokenizer.decode(short.ids).count("\n\n") == 1
    with pytest.raises(DataError, match="3 shots, but only 2 train items"):
        few_shot.requests(task, tokenizer, shots=3, seq_len=128)


def test_figures_are_their_definitions(task, tokenizer):
    asked = few_shot.requests(task, tokenizer, shots=0, seq_len=128)
    scores = np.array([-1.0, -20.0, -3.0, -2.0, -4.0])  # item 0: three choices, item 1: two
    figures = few_shot.summarise(task, asked, scores)
    assert figures["accuracy"] == 0.5
    assert figures["log_likelihood"] == pytest.approx((-1.0 - 4.0) / 2)
    p0, p1 = np.exp([-1, -20, -3]) / np.exp([-1, -20, -3]).sum(), np.exp([-2, -4]) / np.exp([-2, -4]).sum()
    expected = (((p0 - [1, 0, 0]) ** 2).sum() + ((p1 - [0, 1]) ** 2).sum()) / 2
    assert figures["brier"] == pytest.approx(expected)
    # per byte, " flat" (4 bytes, −4) beats "cat" (3 bytes, −2) no more than by sum
    assert figures["accuracy_per_byte"] == 0.5


def test_cloze_has_the_probability_of_its_target(tmp_path, tokenizer):
    task = read_task(_write(tmp_path / "cloze.jsonl", [{"prompt": "the cat sat on the", "target": "mat"}]))
    asked = few_shot.requests(task, tokenizer, shots=0, seq_len=128)
    figures = few_shot.summarise(task, asked, np.array([-2.0]))
    assert figures["probability"] == pytest.approx(np.exp(-2.0))
    assert figures["bits_per_byte"] == pytest.approx(2.0 / np.log(2) / 3)


def _by_the_harness(lm, tokenizer, context, continuation, window):
    """(Σ log p, whether greedy decoding gives it) as lm-evaluation-harness 0.4 computes them, text by text."""
    text = context.rstrip()
    continuation = context[len(text) :] + continuation
    whole = tokenizer(text + continuation, add_special_tokens=False).input_ids
    asked = tokenizer(text, add_special_tokens=False).input_ids
    goal = whole[len(asked) :]
    asked = asked or [tokenizer.eos_token_id]
    with torch.no_grad():
        log_p = lm(torch.tensor([(asked + goal)[-(window + 1) :][:-1]])).logits[0, -len(goal) :].log_softmax(-1)
    return float(sum(log_p[t, token] for t, token in enumerate(goal))), log_p.argmax(-1).tolist() == goal


ROWS = [
    {"prompt": "the cat sat on the", "choices": ["mat", "moon and the hat", "été"], "answer": 0},
    {"prompt": "the hat of the ", "choices": ["cat", "mat"], "answer": 1},
    {"prompt": "", "choices": ["cat", "the mat"], "answer": 1},
    {"prompt": "the cat was flat and " * 9, "choices": ["the cat", "flat"], "answer": 1},
    {"prompt": "cat:\n", "choices": [" hat", "hat"], "answer": 1},
    {"prompt": "猫在", "choices": ["垫子上", "月亮"], "answer": 0},
]


@pytest.mark.parametrize("seq_len", [24, 128])
def test_scores_are_those_of_the_harness(tmp_path, tokenizer, seq_len):
    lm, role = _lm(), Frozen(PackedLM(_lm()), torch.device("cpu"), torch.float64)
    task = read_task(_write(tmp_path / "rows.jsonl", ROWS))
    asked = few_shot.requests(task, tokenizer, shots=0, seq_len=seq_len)
    scores = few_shot.score(role, asked, seq_len=seq_len, micro_rows=2, ranks=ALONE)
    for request, got in zip(asked, scores, strict=True):
        item = task.test[request.item]
        space = "" if item["prompt"][-1:].isspace() else " "
        text = space + item["choices"][request.choice].lstrip()
        assert got == pytest.approx(_by_the_harness(lm, tokenizer, item["prompt"], text, seq_len)[0], abs=1e-9)


def test_a_cloze_is_accurate_where_greedy_decoding_gives_the_target(tmp_path, tokenizer):
    lm, role = _lm(), Frozen(PackedLM(_lm()), torch.device("cpu"), torch.float64)
    prompts = ["the cat sat on the", "flat hat", "of the cat"]
    items = []
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        with torch.no_grad():
            best = int(lm(torch.tensor([ids])).logits[0, -1].argmax())
        text = tokenizer.decode([best]) if number else " moon"
        items.append({"prompt": prompt, "target": text})
    task = read_task(_write(tmp_path / "cloze.jsonl", items))
    found = few_shot.measure(role, [task], tokenizer, shots=0, seq_len=64, micro_rows=2, ranks=ALONE)
    expected = [_by_the_harness(lm, tokenizer, one["prompt"], " " + one["target"].lstrip(), 64)[1] for one in items]
    assert set(expected) == {True, False}
    assert found["cloze_accuracy"] == np.mean(expected)


def test_a_text_longer_than_the_usual_row_is_scored_whole(tmp_path, tokenizer):
    role = Frozen(PackedLM(_lm()), torch.device("cpu"), torch.float64)
    task = read_task(_write(tmp_path / "rows.jsonl", ROWS))
    measure = {"shots": 0, "micro_rows": 2, "ranks": ALONE}
    short = few_shot.measure(role, [task], tokenizer, seq_len=24, **measure)
    whole = few_shot.measure(role, [task], tokenizer, seq_len=128, **measure)
    assert short != pytest.approx(whole)
    assert few_shot.measure(role, [task], tokenizer, seq_len=24, positions=128, **measure) == pytest.approx(whole)
