"""The estimate of memory counts every model of a run: teachers, references, reward models, critics."""

import pytest

from trainers.model import ModelSettings, build, export

VOCABULARY = 4096  # logits then weigh as much as they do in models that people train


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_tokenizer):
    """Models that share a vocabulary: small, large, and a reward model."""
    from trainers.reward import classifier

    top = tmp_path_factory.mktemp("models")
    for name, width, layers in (("small", 64, 2), ("large", 256, 8)):
        shape = ModelSettings(hidden_size=width, layers=layers, heads=4)
        lm = build(shape, vocab_size=VOCABULARY, seq_len=256, seed=1, pad=0, eos=1)
        export(lm, dict(lm.named_parameters()), None if name == "small" else chat_tokenizer, str(top / name))
    reward = classifier(lm, None, 0)
    export(reward, dict(reward.named_parameters()), None, str(top / "reward"))
    return top


@pytest.fixture(scope="module")
def worker(local_ray):
    import ray

    from tests.trainers.live_bytes import Worker

    one = ray.remote(Worker).options(num_cpus=0.1).remote()
    yield one
    ray.kill(one)


@pytest.fixture
def measured(worker, folder, tmp_path, packed, preferences, prompts):
    """(expected, held at the peak) of a run on one CPU worker."""
    import ray

    def run(trainer, engine, **objective):
        data = packed if trainer in ("pretrain", "distill") else preferences
        if "sampling" in objective:
            objective["prompts"] = prompts
        base = {"start_from": str(folder / "small"), "data": str(data), "schedule": {"rate": 1e-3}, "steps": 2}
        size = {"batch_rows": 16, "micro_rows": 16, "workers": 1, "device": "cpu", "export": False, "save": False}
        recipe = {**base, **size, "trainer": trainer, "engine": engine, "objective": objective}
        return ray.get(worker.run.remote(recipe, str(tmp_path / "out")), timeout=600)

    return run


SAMPLED = {
    "rewards": {"format": {"pattern": "a"}}, "kl": 0.05,
    "sampling": {"max_tokens": 48, "samples": 4},
}  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_large_teacher_and_what_it_says_are_counted(measured, folder, precision):
    expected, held = measured("distill", {"precision": precision}, teachers={str(folder / "large"): 1.0})
    assert expected == pytest.approx(held, rel=0.1)


def test_the_reference_of_preferences_is_counted(measured, folder):
    expected, held = measured("preference", {"precision": "bf16"}, reference=str(folder / "large"))
    assert expected == pytest.approx(held, rel=0.1)


def test_reference_and_reward_model_of_sampled_answers_are_counted(measured, folder):
    models = {"reference": str(folder / "large"), "reward_model": str(folder / "reward")}
    expected, held = measured("grpo", {"precision": "fp32"}, **SAMPLED, **models)
    assert expected == pytest.approx(held, rel=0.1)


def test_a_judge_that_a_rule_asks_is_counted(measured, folder):
    judge = {"trainers.feedback.rlaif:direct": {"judge": str(folder / "large"), "template": "{answer}"}}
    expected, held = measured("grpo", {"precision": "fp32"}, **{**SAMPLED, "rewards": judge, "kl": 0.0})
    assert expected == pytest.approx(held, rel=0.1)


def test_a_critic_is_a_second_model_in_training(measured, folder):
    expected, held = measured("ppo", {"precision": "fp32"}, **SAMPLED, critic=str(folder / "reward"))
    assert expected == pytest.approx(held, rel=0.1)
