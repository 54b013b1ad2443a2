import gzip
import itertools
import json

import pytest
import torch

from trainers import cage, model
from trainers.evaluate import generate
from trainers.model import ModelSettings


@pytest.mark.parametrize(
    ("text", "number"),
    [("a #### 1,234", 1234.0), ("7 then 9.5 left", 9.5), ("x = -3.", -3.0), ("none", None), ("1 #### 2 #### 3", 3.0)],
)
def test_the_last_number_counts(text, number):
    assert generate.last_number(text) == number


def test_canonical_solutions_pass_and_broken_ones_do_not(data):
    path = data / "eval_sets/humaneval.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        items = [json.loads(line) for line in itertools.islice(lines, 8)]
    for item in items:
        assert cage.run(generate.human_eval_program(item, item["canonical_solution"])).passed, item["task_id"]
        # what a base model writes behind its function is cut off
        running_on = item["canonical_solution"] + "\nprint(undefined)\n"
        assert cage.run(generate.human_eval_program(item, running_on)).passed
        assert not cage.run(generate.human_eval_program(item, "    return None\n")).passed


def test_batches_and_padding_change_no_completion(packed):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packed / "tokenizer")
    lm = model.build(
        ModelSettings(hidden_size=32, layers=2, heads=4), vocab_size=300, seq_len=64, seed=0, pad=0, eos=1
    ).double()
    prompts = ["the cat", "the hat of the cat sat on", "mat"]
    together = generate.complete(lm, tokenizer, prompts, tokens=10)
    assert together == [generate.complete(lm, tokenizer, [prompt], tokens=10)[0] for prompt in prompts]
    assert torch.is_grad_enabled()


def test_word_problems_need_the_right_number():
    assert generate.solved("5 + 5 = 10, so the answer is 10", "#### 10")
    assert not generate.solved("the answer is 11", "#### 10")
