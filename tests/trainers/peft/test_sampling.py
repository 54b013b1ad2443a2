"""Learning from own samples with few or masked parameters: the sampler is the tuned model, and whole runs."""

import json
from pathlib import Path

import pytest
import torch

from trainers import model
from trainers.batch import PackedRows, collate
from trainers.experience import rows_of
from trainers.log import read_metrics
from trainers.model import ModelSettings, PackedLM
from trainers.peft import tune
from trainers.peft.method import trained
from trainers.policy_sampler import gap
from trainers.prune import magnitude
from trainers.rollout import Sampler, Sampling
from trainers.train import train

METHODS = {
    "lora": {"method": "lora", "targets": ["q_proj", "v_proj", "down_proj"], "dropout": 0.1},
    "dora": {"method": "lora", "targets": ["v_proj", "down_proj"], "dora": True},
    "ia3": {"method": "ia3"},
    "prefix": {"method": "prefix", "tokens": 5},
    "prompt": {"method": "prompt", "tokens": 5},
    "p-tuning": {"method": "prompt", "tokens": 5, "encoder": 16},
    "adapter": {"method": "adapter", "width": 8},
    "loramoe": {"method": "loramoe", "experts": 4, "rank": 2},
    "selective": {"method": "selective", "names": ["*norm*", "*v_proj*"]},
    "diff_pruning": {"method": "diff_pruning", "alpha": 1.0, "structured": True},
}
SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64, init_std=0.3)
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21]]


def _lm():
    return model.build(SHAPE, vocab_size=300, seq_len=64, seed=3, pad=0, eos=1).eval()


@pytest.mark.parametrize("name", [*METHODS, "masks"])
def test_the_sampler_is_the_tuned_model_token_by_token(packed, name):
    from transformers import AutoTokenizer

    def attach(into):
        if name == "masks":
            magnitude.attach(into, magnitude.Magnitude(sparsity=0.5))
        else:
            tune.attach(tune.method_of(METHODS[name]), into, 0)

    lm = PackedLM(_lm())
    attach(lm)
    if name == "masks":
        lm.tuning.begin(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in () if name == "masks" else trained(lm):
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    tokenizer = AutoTokenizer.from_pretrained(str(Path(packed, "tokenizer")))
    weights = {key.removeprefix("lm."): value.detach() for key, value in lm.named_parameters()}
    weights |= {key.removeprefix("lm."): value for key, value in lm.named_buffers() if key.endswith(".mask")}
    found = []
    for ahead in (1, 4):
        sampler = Sampler(lm.lm.config, tokenizer, torch.device("cpu"), slots=3, ahead=ahead)
        sampler.tune(attach)
        sampler.take(dict(weights))
        answers = sampler.generate(PROMPTS, Sampling(max_tokens=12, samples=2))
        rows = rows_of(PROMPTS, answers, pad=0)
        with torch.no_grad():
            by_trainer = -lm.eval()(*(getattr(rows, f) for f in ("input_ids", "position_ids", "doc_index", "targets")), "token_losses")  # fmt: skip # noqa: E501
        tokens, _, most = gap(by_trainer, rows.sampler_log_probs, rows.mask)
        assert tokens > 20
        assert most < 1e-4
        found.append([answer.tokens for answer in answers])
    assert found[0] == found[1]
    plain = Sampler(lm.lm.config, tokenizer, torch.device("cpu"), slots=3)
    plain.take({key: value.detach() for key, value in _lm().named_parameters()})
    assert [a.tokens for a in plain.generate(PROMPTS, Sampling(max_tokens=12, samples=2))] != found[0]


@pytest.fixture(scope="module")
def base(packed, tmp_path_factory):
    """A model to tune, in a transformers folder."""
    lm = model.build(SHAPE, vocab_size=300, seq_len=64, seed=0, pad=0, eos=1)
    folder = tmp_path_factory.mktemp("base") / "model"
    model.export(lm, dict(lm.named_parameters()), str(packed / "tokenizer"), str(folder))
    return folder


CASES = {
    "lora": ("grpo", {"peft": {**METHODS["lora"], "rank": 16}}, {"zero": 1}, 0.1),
    "dora": ("grpo", {"peft": METHODS["dora"]}, {"zero": 2}, 0.1),
    "ia3": ("grpo", {"peft": METHODS["ia3"]}, {"zero": 0}, 0.5),
    "prefix": ("grpo", {"peft": METHODS["prefix"]}, {"zero": 3}, 0.5),
    "prompt": ("ppo", {"peft": METHODS["prompt"]}, {"zero": 1}, 2.0),
    "p-tuning": ("grpo", {"peft": METHODS["p-tuning"]}, {"zero": 1}, 0.3),
    "adapter": ("ppo", {"peft": METHODS["adapter"]}, {"zero": 3}, 0.05),
    "loramoe": ("grpo", {"peft": METHODS["loramoe"]}, {"zero": 1}, 0.1),
    "selective": ("grpo", {"peft": METHODS["selective"]}, {"zero": 1}, 0.1),
    "diff_pruning": ("grpo", {"peft": {**METHODS["diff_pruning"], "alpha": 5.0}}, {"zero": 1}, 0.05),
    "masks": ("grpo", {"prune": {"sparsity": 0.5, "end": 6}}, {"zero": 1}, 0.02),
}


@pytest.mark.parametrize("name", CASES)
def test_two_workers_learn_from_own_samples_and_the_saved_adapter_says_the_same(
    recipe, base, packed, tmp_path, crew, name
):
    trainer, block, engine, rate = CASES[name]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(48)))
    objective = {
        "prompts": str(prompts), "rewards": {"length": {"most": 0, "scale": 20, "weight": 1.0}}, "slots": 8,
        "sampling": {"max_tokens": 12, "samples": 4}, "validation_prompts": str(prompts), "epochs": 1,
    }  # fmt: skip
    steps = 8 if "prompt" in str(block) else 20
    settings = recipe(
        trainer=trainer, start_from=str(base), workers=2, steps=steps, batch_rows=16, micro_rows=8, engine=engine,
        objective=objective, schedule={"rate": rate, "warmup": 1}, checkpoint_every=6, **block,
    )  # fmt: skip
    del settings["model"]
    report = train(settings, str(tmp_path / "run"), crew=crew)
    lines = [line for line in read_metrics(str(tmp_path / "run")) if "reward" in line]
    assert max(line["gap"] for line in lines) < 1e-4
    first, last = (sum(line["reward"] for line in some) for some in (lines[:3], lines[-3:]))
    # a few soft tokens have no grip on a model that was never trained
    assert last > first or "prompt" in str(block), [round(line["reward"], 3) for line in lines]

    before, after = PackedLM(model.load(str(base))), PackedLM(model.load(str(base)))
    if name == "masks":
        after = PackedLM(model.load(report.export))
    else:
        tune.load(after, str(tmp_path / "run/adapter"))
    batch = collate(PackedRows(str(packed), "validation").read(0, 4))
    inputs = (batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
    with torch.no_grad():
        said, plain = float(after.eval()(*inputs)), float(before.eval()(*inputs))
        assert said != pytest.approx(plain, rel=1e-4)
        if name != "masks" and tune.method_of(block["peft"]).mergeable() is None:
            assert float(PackedLM(model.load(report.export)).eval()(*inputs)) == pytest.approx(said, rel=1e-5)
