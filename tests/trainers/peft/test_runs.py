"""Whole runs on two workers: what is trained is small, resumes, and reloads."""

import shutil
from pathlib import Path

import pytest
import torch

from cluster.errors import RecipeError
from trainers import model
from trainers.batch import PackedRows, collate
from trainers.log import read_metrics
from trainers.model import ModelSettings, PackedLM
from trainers.peft import tune
from trainers.recipe import from_mapping
from trainers.train import train


@pytest.fixture(scope="module")
def base(packed, tmp_path_factory):
    """A model to tune, in a transformers folder."""
    shape = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
    lm = model.build(shape, vocab_size=300, seq_len=64, seed=0, pad=0, eos=1)
    folder = tmp_path_factory.mktemp("base") / "model"
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(folder))
    return folder


def _tensors(checkpoint):
    from safetensors import safe_open

    found = {}
    for file in Path(checkpoint).glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    return found


CASES = {
    "lora": ({"method": "lora", "targets": ["q_proj", "v_proj", "down_proj"]}, {"zero": 1}),
    "prefix": ({"method": "prefix", "tokens": 4}, {"zero": 3}),
    "loramoe": ({"method": "loramoe", "experts": 3, "rank": 2, "balance": 0.1}, {"zero": 2}),
    "diff_pruning": ({"method": "diff_pruning", "penalty": 1e-5, "keep": 0.1}, {"zero": 1}),
    "prompt": ({"method": "prompt", "tokens": 4}, {"zero": 0, "precision": "bf16"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tuned_run_saves_little_resumes_exactly_and_reloads(base, recipe, packed, tmp_path, crew, name):
    block, engine = CASES[name]
    tuned = recipe(
        workers=2, start_from=str(base), peft=block, engine=engine, steps=6, checkpoint_every=3, keep=9,
        schedule={"rate": 0.1 if name == "prompt" else 0.02, "warmup": 0},
    )  # fmt: skip
    del tuned["model"]
    whole = train(tuned, str(tmp_path / "whole"), crew=crew)
    assert whole.last_loss < whole.first_loss
    weights = {key for key in _tensors(whole.checkpoint) if key.startswith("policy/weight/")}
    packed_lm = PackedLM(model.load(str(base)))
    method = tune.method_of(block)
    tune.attach(method, packed_lm, 0)
    assert weights == {f"policy/weight/{key}" for key, v in tune.trained(packed_lm)}

    shutil.copytree(tmp_path / "whole/checkpoints/step-00000003", tmp_path / "again/checkpoints/step-00000003")
    again = train(tuned, str(tmp_path / "again"), crew=crew)
    assert again.losses == {step: loss for step, loss in whole.losses.items() if step > 3}

    reloaded = PackedLM(model.load(str(base)))
    tune.load(reloaded, str(tmp_path / "whole/adapter"))
    held_out = collate(PackedRows(str(packed), "validation").read(0, 24))
    inputs = (held_out.input_ids, held_out.position_ids, held_out.doc_index, held_out.targets)
    with torch.no_grad():
        loss = float(reloaded.eval()(*inputs)) / held_out.target_count()
    if name != "diff_pruning":  # only a tenth of its changes is kept
        assert loss == pytest.approx(whole.validation[6], rel=1e-2 if "precision" in engine else 1e-5)
    if method.mergeable() is None:
        with torch.no_grad():
            merged = float(PackedLM(model.load(whole.export))(*inputs)) / held_out.target_count()
        assert merged == pytest.approx(whole.validation[6], rel=1e-5)
    else:
        assert whole.export == str(tmp_path / "whole/adapter")
    line = next(line for line in read_metrics(str(tmp_path / "whole")) if "trained_share" in line)
    assert line["trained_share"] == pytest.approx(
        sum(v.numel() for _, v in tune.trained(packed_lm)) / sum(p.numel() for p in model.load(str(base)).parameters())
    )


def test_numbers_of_workers_and_zero_stages_change_no_loss(base, recipe, tmp_path, crew):
    losses = []
    for workers, zero in ((1, 0), (2, 2)):
        tuned = recipe(
            workers=workers, start_from=str(base), peft={"method": "loramoe", "experts": 2, "balance": 1.0},
            engine={"zero": zero}, steps=4, export=False, save=False,
        )  # fmt: skip
        del tuned["model"]
        losses.append(train(tuned, str(tmp_path / str(workers)), crew=crew).losses)
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, abs=1e-5)


def test_tuning_needs_a_model_to_tune(recipe):
    with pytest.raises(RecipeError, match="name its transformers folder"):
        from_mapping(recipe(peft={"method": "lora"}))


def test_each_part_of_a_mixture_trains_its_own_prompt(base, recipe, packed, packed_writer, tmp_path, crew):
    other = packed_writer(tmp_path / "other", 60, seed=5)
    tuned = recipe(
        workers=2, start_from=str(base), data={str(packed): 1.0, str(other): 1.0}, steps=2, save=False, batch_rows=3,
        peft={"method": "prompt", "tokens": 3, "tasks": 3}, engine={"weight_decay": 0},
        schedule={"rate": 0.1, "warmup": 0},
    )  # fmt: skip
    del tuned["model"]
    train(tuned, str(tmp_path / "run"), crew=crew)
    before = PackedLM(model.load(str(base)))
    tune.attach(tune.method_of(tuned["peft"]), before, 0)
    after = tune.read_tensors(str(tmp_path / "run/adapter"))["tuning.vectors"]
    moved = (after - before.tuning.vectors.detach()).abs().amax((1, 2))
    assert moved[0] > 0.01 and moved[1] > 0.01
    assert moved[2] == 0  # no data set of that number


PREFERRING = {
    "lora": ({}, 0.05, 1), "adapter": ({"width": 16}, 0.05, 3), "ia3": ({}, 0.3, 0), "prefix": ({"tokens": 4}, 0.3, 3),
    "prompt": ({"tokens": 4, "encoder": 16}, 0.1, 1), "loramoe": ({"experts": 3, "rank": 2, "balance": 0.0}, 0.05, 2),
    "selective": ({"layers": [-1]}, 0.02, 3), "diff_pruning": ({"penalty": 0.0}, 0.01, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERRING)
def test_preferences_are_learned_by_few_parameters_against_the_untuned_start(recipe, preferences, tmp_path, crew, name):
    block, rate, zero = PREFERRING[name]
    shape = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
    model.build(shape, vocab_size=302, seq_len=192, seed=0, pad=0, eos=1).save_pretrained(tmp_path / "begin")
    report = train(
        recipe(
            trainer="preference", data=str(preferences), objective={"beta": 0.5}, start_from=str(tmp_path / "begin"),
            model={}, peft={"method": name, **block}, engine={"zero": zero}, workers=2, steps=6,
            batch_rows=8, micro_rows=3, save=False, schedule={"rate": rate, "warmup": 0},
        ),
        str(tmp_path / "run"), crew=crew,
    )  # fmt: skip
    # both start as the same model, but for what stands in front from the beginning
    assert report.first_loss == pytest.approx(0.6931472, abs=1e-2 if name in ("prefix", "prompt") else 1e-5)
    assert report.last_loss < (0.68 if name in ("ia3", "prefix", "prompt") else 0.6)
