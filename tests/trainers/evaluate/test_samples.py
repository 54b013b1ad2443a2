"""Samples of a model in training."""

import torch
from transformers import AutoTokenizer

from trainers import model
from trainers.evaluate.samples import continued
from trainers.model import ModelSettings, PackedLM
from trainers.roles import Frozen

SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


def test_greedy_samples_are_those_of_transformers_alone(packed):
    """Three prompts in two batches of padded rows against one prompt at a time with a cache."""
    tokenizer = AutoTokenizer.from_pretrained(packed / "tokenizer")
    lm = model.build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).double()
    prompts = ["the cat sat", "a hat", "on the mat and the cat"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        out = lm.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        new = out[0, ids.shape[1] :].tolist()
        expected.append(tokenizer.decode(new[: new.index(1)] if 1 in new else new))
    role = Frozen(PackedLM(lm), torch.device("cpu"), torch.float64)
    settings = {"tokens": 12, "micro_rows": 2, "seq_len": 64}
    got = continued(role, tokenizer, prompts, temperature=0, **settings)
    assert [one["text"] for one in got] == expected
    drawn = continued(role, tokenizer, prompts, **settings)
    assert drawn == continued(role, tokenizer, prompts, **settings)
    assert drawn != continued(role, tokenizer, prompts, seed=7, **settings)
