"""Few parameters, or masked ones, under the trainers that are no language modelling: reward models and students."""

import shutil
from pathlib import Path

import pytest
import torch

from trainers import model
from trainers.batch import PackedRows, shared_out
from trainers.log import read_metrics
from trainers.model import ModelSettings, PackedLM
from trainers.peft import tune
from trainers.reward import PackedReward, Reward, classifier, load_reward, reward_loss
from trainers.train import train

SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def base(preferences, tmp_path_factory):
    lm = model.build(SHAPE, vocab_size=302, seq_len=192, seed=0, pad=0, eos=1)
    folder = tmp_path_factory.mktemp("base") / "model"
    model.export(lm, dict(lm.named_parameters()), str(preferences / "tokenizer"), str(folder))
    return str(folder)


def held_out(folder):
    split = PackedRows(str(folder), "validation")
    return shared_out(split, 0, split.rows, split.rows).micro_batches[0]


def loss_of(reward_model, folder):
    batch = held_out(folder)
    with torch.no_grad():
        values = reward_model(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
        found = reward_loss(Reward(), values, batch)
    return float(found.total / found.count)


TUNED = {
    "lora": ({"peft": {"method": "lora", "targets": ["q_proj", "v_proj", "down_proj"]}}, 0.02),
    "prefix": ({"peft": {"method": "prefix", "tokens": 4}}, 0.05),
    "pruned": ({"prune": {"sparsity": 0.5, "end": 10, "every": 2}}, 0.01),
}


@pytest.mark.parametrize("name", TUNED)
def test_a_reward_model_is_tuned_resumes_and_says_the_same_when_loaded(recipe, base, preferences, tmp_path, crew, name):
    fields, rate = TUNED[name]
    run = recipe(
        trainer="reward", data=str(preferences), start_from=base, workers=2, batch_rows=8, steps=20,
        schedule={"rate": rate, "warmup": 2}, checkpoint_every=10, keep=9, objective={}, **fields,
    )  # fmt: skip
    del run["model"]
    report = train(run, str(tmp_path / "run"), crew=crew)
    (figures,) = [line for line in read_metrics(str(tmp_path / "run")) if "validation" in line]
    assert figures["validation_accuracy"] > 0.85
    (tmp_path / "again/checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "run/checkpoints/step-00000010", tmp_path / "again/checkpoints/step-00000010")
    again = train({**run, "export": False}, str(tmp_path / "again"), crew=crew)
    assert again.losses == {step: loss for step, loss in report.losses.items() if step > 10}
    if name != "prefix":
        assert loss_of(load_reward(report.export), preferences) == pytest.approx(figures["validation"], abs=1e-5)
    if name == "pruned":
        weights = model.load(report.export).model.layers[0].mlp.down_proj.weight
        assert float((weights == 0).float().mean()) > 0.3
        return
    reloaded = PackedReward(classifier(model.load(base), None, 99))
    tune.load(reloaded, str(tmp_path / "run/adapter"))
    assert loss_of(reloaded.eval(), preferences) == pytest.approx(figures["validation"], abs=1e-5)
    if name == "lora":
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification

        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "run/adapter")).eval()
        batch = held_out(preferences)
        end = int(batch.extra["ends"][0, 0])
        alone = batch.input_ids[:1, :end]
        ours = load_reward(report.export)
        with torch.no_grad():
            value = ours(alone, torch.arange(end)[None], torch.zeros_like(alone), alone)[0, -1]
            assert float(theirs(input_ids=alone).logits) == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("name", ["lora", "pruned"])
def test_a_student_is_taught_with_few_or_masked_parameters(recipe, packed, tmp_path, crew, name):
    folders = {}
    for part, seed, layers in (("student", 0, 2), ("teacher", 1, 4)):
        lm = model.build(
            SHAPE.model_copy(update={"layers": layers}), vocab_size=300, seq_len=64, seed=seed, pad=0, eos=1
        )
        folders[part] = str(tmp_path / part)
        model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), folders[part])
    fields, rate = TUNED[name]
    run = recipe(
        trainer="distill", start_from=folders["student"], workers=2, steps=8, schedule={"rate": rate, "warmup": 0},
        objective={"teachers": {folders["teacher"]: 1.0}, "features": 0.5, "validation_rows": 24}, save=False, **fields,
    )  # fmt: skip
    del run["model"]
    report = train(run, str(tmp_path / "run"), crew=crew)
    assert report.last_loss < report.first_loss
    held = held_out(packed)
    with torch.no_grad():
        summed = PackedLM(model.load(report.export))(held.input_ids, held.position_ids, held.doc_index, held.targets)
    assert float(summed) / held.target_count() == pytest.approx(report.validation[8], rel=1e-5)
    assert Path(tmp_path / "run/adapter").is_dir() == (name == "lora")
