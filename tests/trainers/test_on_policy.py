"""Learning from own samples, whole runs: rewards rise, and neither kills nor the cut into ranks change anything."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from cluster.errors import RecipeError
from trainers import policy_gradient as pg
from trainers.iteration import order
from trainers.log import read_metrics
from trainers.train import train

ROOT = Path(__file__).parents[2]
FAST = {"rate": 4e-2, "warmup": 1}
LENGTH = {"length": {"most": 0, "scale": 20, "weight": 1.0}}


@pytest.fixture
def on_policy(recipe, prompts):
    """A recipe: short answers are better; call it with changes of the objective."""

    def make(trainer="grpo", changes=None, **fields):
        objective = {"prompts": prompts, "rewards": LENGTH, "sampling": {"max_tokens": 12, "samples": 4}, "slots": 8}
        base = {"trainer": trainer, "batch_rows": 16, "micro_rows": 8, "workers": 2, "steps": 24, "export": False}
        base |= {"objective": objective | (changes or {}), "schedule": {"rate": 2e-2, "warmup": 2}}
        return recipe(**{**base, **fields})

    return make


def figures(out):
    return [line for line in read_metrics(str(out)) if "reward" in line]


ALGORITHMS = [
    ("grpo", {"kl": 0.01}, 1),
    ("grpo", {"advantage": "dr_grpo", "minibatches": 2, "epochs": 2, "entropy": 0.001}, 0),
    ("grpo", {"advantage": "rloo", "kl": 0.01, "kl_estimate": "k2", "variance_every": 8}, 3),
    ("grpo", {"advantage": "reinforce_pp", "kl": 0.01, "kl_estimate": "k1", "importance": 2.0}, 1),
    ("ppo", {"epochs": 2, "kl_target": 5.0, "stop_kl": 0.5}, 1),
    ("ppo", {"epochs": 2, "value_clip": None, "target": "td", "kl": 0.0, "whiten": "biased"}, 2),
]


@pytest.mark.parametrize(("trainer", "changes", "zero"), ALGORITHMS, ids=lambda v: str(v)[:40])
def test_two_workers_learn_that_short_answers_are_better(on_policy, tmp_path, crew, trainer, changes, zero):
    steps = 24 * changes.get("epochs", 1) * changes.get("minibatches", 1)
    train(on_policy(trainer, changes, engine={"zero": zero}, steps=steps), str(tmp_path), crew=crew)
    lines = figures(tmp_path)
    first = np.mean([line["reward"] for line in lines[:3]])
    last = np.mean([line["reward"] for line in lines[-3:]])
    assert last > first + 0.2, [round(line["reward"], 2) for line in lines]
    assert max(line["gap"] for line in lines) < 1e-4
    assert all(line["rollout_seconds"] > 0 for line in lines)


@pytest.mark.parametrize("psi", [psi for psi in get_args(pg.Psi) if psi != "gae"])
def test_ppo_learns_by_every_psi_and_tells_the_variance_of_all_on_the_same_answers(on_policy, tmp_path, crew, psi):
    changes = {"psi": psi, "psi_steps": 3, "kl": 0.0, "variance_every": 4, "epochs": 2}
    train(on_policy("ppo", changes, schedule=FAST), str(tmp_path), crew=crew)
    lines = figures(tmp_path)
    first, last = (np.mean([line["reward"] for line in some]) for some in (lines[:3], lines[-3:]))
    assert last > first + 0.2, [round(line["reward"], 2) for line in lines]
    told = [line for line in lines if "variance_gae" in line]
    assert [line["step"] for line in told] == [1, 2, 9, 10, 17, 18]  # two steps are an iteration
    order = ("return", "baseline", "gae", "advantage", "td")
    variances = [told[0][f"variance_{name}"] for name in order]
    assert variances == sorted(variances, reverse=True), variances
    assert told[0]["variance_reward_to_go"] == pytest.approx(variances[0])  # the one reward comes at the end


def test_groups_tell_the_variance_that_comparing_with_others_takes_off(on_policy, tmp_path, crew):
    train(on_policy("grpo", {"advantage": "return", "variance_every": 1}, schedule=FAST), str(tmp_path), crew=crew)
    lines = figures(tmp_path)
    first, last = (np.mean([line["reward"] for line in some]) for some in (lines[:3], lines[-3:]))
    assert last > first + 0.2, [round(line["reward"], 2) for line in lines]
    alone, compared = (np.mean([line[f"variance_{name}"] for line in lines[:10]]) for name in ("return", "rloo"))
    assert compared < alone / 4
    tokens = [line["tokens"] for line in lines]  # of the answers, though the loss is a mean over answers
    assert tokens[-1] == round(sum(line["answer_tokens"] for line in lines) * tokens[0] / lines[0]["answer_tokens"])
    assert all(line["variance_reward_to_go"] == pytest.approx(line["variance_return"]) for line in lines)


def test_every_prompt_comes_once_per_pass_wherever_a_run_begins():
    whole = order(0, 30, 10, 3)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert order(7, 13, 10, 3) == whole[7:20]


def _history(out):
    kept = ("step", "loss", "reward", "kl", "answer_tokens", "kl_weight", "row")
    return [{name: line[name] for name in kept} for line in figures(out)]


@pytest.mark.parametrize(("trainer", "seen"), [("grpo", 12), ("ppo", 14)], ids=["sampling", "training"])
def test_a_worker_killed_within_an_iteration_changes_nothing(on_policy, tmp_path, crew, trainer, seen):
    """Iterations of four steps, checkpoints due within them; the iteration is done again and no sample counts twice."""
    changes = {"minibatches": 2, "epochs": 2, "kl": 0.02, "kl_target": 3.0}
    recipe = on_policy(trainer, changes, steps=40, checkpoint_every=3)
    train(recipe, str(tmp_path / "whole"), crew=crew)
    out = tmp_path / "struck"
    struck = []
    finished = threading.Event()

    def strike():
        while not struck and not finished.is_set():
            lines = figures(out)
            if len(lines) >= seen:
                struck.append(len(lines))
                os.kill(json.loads((out / "workers.json").read_text())["pids"][1], signal.SIGKILL)
            time.sleep(0.005)

    striker = threading.Thread(target=strike)
    striker.start()
    report = train(recipe, str(out), crew=crew)
    finished.set()
    striker.join()
    assert report.restarts == 1
    assert _history(out) == _history(tmp_path / "whole")
    rows = [line["row"] for line in figures(out)]
    assert rows == [8 * (1 + step // 4) for step in range(40)]


def test_a_driver_killed_within_an_iteration_goes_on_with_the_same_command(on_policy, tmp_path, crew):
    changes = {"minibatches": 2, "epochs": 2, "kl": 0.02, "kl_target": 3.0}
    recipe = on_policy("ppo", changes, steps=120, checkpoint_every=3)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "struck"
    command = [sys.executable, str(ROOT / "corpusmill.py"), "train", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(figures(out)) < 14 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert 14 <= len(figures(out)) < 120
    report = train(recipe, str(out), crew=crew)
    assert 0 < report.steps_done < 120
    assert report.steps_done % 4 == 0  # whole iterations
    train(recipe, str(tmp_path / "whole"), crew=crew)
    assert _history(out) == _history(tmp_path / "whole")


def test_checkpoints_lie_between_iterations(on_policy, tmp_path, crew):
    changes = {"minibatches": 2, "epochs": 2}
    train(on_policy("grpo", changes, steps=12, checkpoint_every=3, keep=10), str(tmp_path), crew=crew)
    places = [json.loads(p.read_text()) for p in sorted(Path(tmp_path, "checkpoints").glob("*/checkpoint.json"))]
    assert [(p["step"], p["cursor"]) for p in places] == [(4, 8), (8, 16), (12, 24)]


def test_the_gap_between_sampler_and_trainer_stops_the_run(on_policy, tmp_path, crew):
    with pytest.raises(Exception, match="sampler and trainer differ by"):
        train(on_policy("grpo", {"max_gap": 1e-12}, steps=2), str(tmp_path), crew=crew)


def test_what_cannot_be_learned_is_refused_before_anything_starts(on_policy, tmp_path):
    tuned = on_policy(changes={"vllm": {"python": "python"}}, peft={"method": "lora"}, start_from="somewhere")
    del tuned["model"]
    with pytest.raises(RecipeError, match="vllm takes whole weights"):
        train(tuned, str(tmp_path))
    with pytest.raises(RecipeError, match="say how many steps"):
        train(on_policy(steps=None), str(tmp_path))
    for changes, message in (
        ({"rewards": {}}, "nothing says which answer is better"),
        ({"sampling": {"samples": 3, "max_tokens": 4}}, "are not whole prompts"),
        ({"sampling": {"samples": 1, "max_tokens": 4}}, "compares answers"),
        ({"sampling": {"samples": 4, "temperature": 0, "max_tokens": 4}}, "nothing can be compared"),
        ({"rewards": {"nmber": 1.0}}, "no rule named 'nmber'; did you mean 'number'"),
        ({"rewards": {"length": {"moist": 3}}}, "length has no setting 'moist'; did you mean 'most'"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(on_policy(changes=changes), str(tmp_path / "never"))
        assert not (tmp_path / "never").exists()


def test_how_many_workers_there_are_may_show_only_when_they_meet(on_policy, tmp_path, crew):
    alone = on_policy(changes={"sampling": {"samples": 6, "max_tokens": 4}}, batch_rows=18, workers="auto")
    with pytest.raises(RecipeError, match="make it a multiple of 12"):
        train(alone, str(tmp_path), crew=crew)
