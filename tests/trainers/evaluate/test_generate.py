import gzip
import json
import lzma

import pytest
import torch

from cluster.errors import DataError, RecipeError
from trainers import cage, model
from trainers.evaluate import generate
from trainers.evaluate.command import evaluate
from trainers.evaluate.task import Task
from trainers.log import read_metrics
from trainers.model import ModelSettings
from trainers.ranks import Ranks
from trainers.rollout import Answer, Sampler, Sampling
from trainers.train import train


@pytest.mark.parametrize(
    ("text", "number"),
    [("a #### 1,234", 1234.0), ("7 then 9.5 left", 9.5), ("x = -3.", -3.0), ("none", None), ("1 #### 2 #### 3", 3.0)],
)
def test_the_last_number_counts(text, number):
    assert generate.last_number(text) == number


def test_canonical_solutions_pass_and_broken_ones_do_not(data):
    path = data / "eval_sets/humaneval.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        items = [json.loads(line) for line in lines]
    for item in items:
        assert cage.run(generate.human_eval_program(item, item["canonical_solution"])).passed, item["task_id"]
    for item in items[:8]:
        # what a base model writes behind its function is cut off
        running_on = item["canonical_solution"] + "\nprint(undefined)\n"
        assert cage.run(generate.human_eval_program(item, running_on)).passed
        assert not cage.run(generate.human_eval_program(item, "    return None\n")).passed


def test_the_published_example_has_its_published_result(data):
    item = json.loads((data / "eval_sets/humaneval_example_problem.jsonl").read_text())
    samples = (data / "eval_sets/humaneval_example_samples.jsonl").read_text().splitlines()
    programs = [generate.human_eval_program(item, json.loads(line)["completion"]) for line in samples]
    passed = sum(cage.run(program, seconds=3).passed for program in programs)
    assert generate.pass_at(1, len(samples), passed) == pytest.approx(0.5)  # README of human-eval


def test_solutions_of_word_problems_are_judged_as_their_authors_judged_them(data):
    with lzma.open(data / "math/gsm8k_test_with_model_solutions.jsonl.xz", "rt") as lines:
        items = [json.loads(line) for line in lines]
    solutions = [(one, item["answer"]) for item in items for one in item["model_solutions"].values()]
    agree = sum(generate.solved(one["solution"], answer) == one["is_correct"] for one, answer in solutions)
    assert agree >= len(solutions) - 1


@pytest.fixture(scope="module")
def tokenizer(packed):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(packed / "tokenizer")


@pytest.fixture(scope="module")
def lm():
    settings = ModelSettings(hidden_size=32, layers=2, heads=4)
    return model.build(settings, vocab_size=300, seq_len=64, seed=0, pad=0, eos=1)


def _sampler(lm, tokenizer, slots=64):
    sampler = Sampler(lm.config, tokenizer, torch.device("cpu"), slots=slots)
    sampler.take(dict(lm.named_parameters()))
    return sampler


class Told:
    """A sampler that writes given texts: what is judged, without a model that can do it."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.prompts, self.sampling = tokenizer, texts, [], None

    def generate(self, prompts, sampling, numbers=None):
        self.prompts += [self.tokenizer.decode(ids) for ids in prompts]
        self.sampling = sampling
        made = []
        for place, number in enumerate(numbers):
            for sample in range(sampling.samples):
                ids = self.tokenizer(self.texts[number][sample], add_special_tokens=False).input_ids
                made.append(Answer(place, sample, ids, [0.0] * len(ids), True))
        return made


SUMS = Task("sums", "number", [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(4)],
            [{"question": f"t{n}", "answer": f"so #### {n}"} for n in range(3)])  # fmt: skip
ROOM = {"tokens": 8, "positions": 400, "ranks": Ranks(0, 1, torch.device("cpu"))}


def test_the_share_of_right_numbers_is_told_and_the_next_question_does_not_count(tokenizer):
    told = Told(tokenizer, [["it is 0\nQuestion: 7"], ["it is 5"], ["2."]])
    figures = generate.measure(told, [SUMS], tokenizer, shots=2, **ROOM)
    assert figures == {"sums_solved": pytest.approx(2 / 3)}
    assert all(prompt.count("\nAnswer: #### ") == 2 for prompt in told.prompts)
    assert told.prompts[1].endswith("Question: t1\nAnswer:")
    assert told.sampling.stop == ("\nQuestion:",)


def test_several_samples_give_the_unbiased_chance_of_one(tokenizer):
    told = Told(tokenizer, [["0", "1", "0", "1"], ["9", "9", "9", "9"], ["2", "2", "2", "2"]])
    figures = generate.measure(told, [SUMS], tokenizer, shots=0, samples=4, temperature=0.8, **ROOM)
    assert figures == {"sums_solved": pytest.approx(0.5), "sums_pass_at_4": pytest.approx(2 / 3)}


def test_a_long_prompt_loses_its_first_examples_and_keeps_its_question(tokenizer):
    whole = generate.asked(SUMS, tokenizer, 0, shots=3, room=400)
    short = tokenizer.decode(generate.asked(SUMS, tokenizer, 0, shots=3, room=len(whole) - 1))
    assert short.count("Question:") == 3
    assert short.endswith("Question: t0\nAnswer:")
    assert len(generate.asked(SUMS, tokenizer, 0, shots=3, room=4)) == 4
    with pytest.raises(DataError, match=r"answers of 64 tokens leave no room .* 64 positions"):
        generate.check_room([SUMS], tokens=64, positions=64)


def test_neighbours_and_slots_change_no_figure_and_no_completion(lm, tokenizer):
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in ("the cat", "the hat of the cat sat", "mat")]
    sampling = Sampling(temperature=0, max_tokens=10)
    together = [one.tokens for one in _sampler(lm, tokenizer).generate(ids, sampling)]
    assert together == [_sampler(lm, tokenizer, slots=1).generate([one], sampling)[0].tokens for one in ids]
    plain = lm.generate(torch.tensor([ids[0]]), max_new_tokens=10, do_sample=False, pad_token_id=0)[0, len(ids[0]) :]
    assert together[0] == plain.tolist()


def test_a_folder_is_evaluated_on_every_kind_of_task(lm, tokenizer, packed, tmp_path, data):
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(tmp_path / "model"))
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(json.dumps({**one, "split": part}) + "\n" for part, of in (("train", SUMS.train),
                    ("test", SUMS.test)) for one in of))  # fmt: skip
    choices = tmp_path / "cats.jsonl"
    choices.write_text('{"prompt": "the", "choices": ["cat", "hat"], "answer": 0}\n')
    code = str(data / "eval_sets/humaneval.jsonl.gz")
    figures = evaluate(str(tmp_path / "model"), [str(sums), code], limit=2, tokens=8, shots=2)
    assert figures == {"sums_solved": 0.0, "humaneval_pass_at_1": 0.0}  # weights are random
    assert set(evaluate(str(tmp_path / "model"), [str(choices)])) >= {"cats_accuracy", "cats_brier"}
    with pytest.raises(RecipeError, match="4 samples at temperature 0"):
        evaluate(str(tmp_path / "model"), [str(sums)], samples=4, temperature=0.0)


def test_what_a_run_measures_of_its_tasks_is_what_evaluate_says_of_its_export(recipe, crew, tmp_path, data):
    (tmp_path / "sums").mkdir()
    for split, items in (("train", SUMS.train), ("test", SUMS.test)):
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (tmp_path / f"sums/{split}.jsonl").write_text(lines)
    item = {"prompt": "the", "choices": ["cat", "hat"], "answer": 0}
    cats = [item, {**item, "prompt": "a", "split": "train"}]
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in cats))
    tasks = [str(tmp_path / "sums"), str(tmp_path / "cats.jsonl"), str(data / "eval_sets/humaneval.jsonl.gz")]
    objective = {"tasks": tasks, "task_items": 2, "task_tokens": 8, "shots": 1, "validation_rows": 3}
    train(recipe(steps=2, workers=2, engine={"zero": 3}, objective=objective), str(tmp_path / "run"), crew=crew)
    (measured,) = [line for line in read_metrics(str(tmp_path / "run")) if "sums_solved" in line]
    said = evaluate(str(tmp_path / "run/model"), tasks, limit=2, tokens=8, shots=1)
    assert said == pytest.approx({name: measured[name] for name in said}, abs=1e-5)
    assert {"sums_solved", "humaneval_pass_at_1", "cats_accuracy"} <= set(said)


def test_word_problems_need_the_right_number():
    assert generate.solved("5 + 5 = 10, so the answer is 10", "#### 10")
    assert not generate.solved("the answer is 11", "#### 10")
