"""RLAIF over Ray and DeepSpeed with two workers: the canonical chain by PPO, and the judge's score as the reward."""

import json
import math
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import RecipeError
from cluster.settings import read_yaml
from trainers.feedback.judge import Comparing, Rating
from trainers.feedback.rlaif import Rlaif, direct, direct_reward, recipes, rlaif
from trainers.feedback.writer import Draw, Model
from trainers.log import read_metrics
from trainers.recipe import from_mapping
from trainers.train import train

SHORT = {"batch_rows": 8, "micro_rows": 4, "workers": 2, "device": "cpu", "schedule": {"rate": 3e-3, "warmup": 1}}
RECIPES = Path(__file__).parents[3] / "recipes/feedback"


class LikesCats:
    """Finds the answer with more cats better, whatever the order."""

    name = "likes cats"

    def label_log_probs(self, chats, labels):
        if len(labels) == 2:
            counts = [[part.count("cat") for part in chat[-1]["content"].split("|")[1:3]] for chat in chats]
            return [[float(first), float(second)] for first, second in counts]
        best = [min(chat[-1]["content"].count("cat"), len(labels) - 1) for chat in chats]
        return [[0.0 if i == place else -40.0 for i in range(len(labels))] for place in best]


class RatesCats(BaseHTTPRequestHandler):
    """The same judge behind the OpenAI protocol: a digit, one more for every cat, with its probability."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digit = 1 + min(asked["messages"][-1]["content"].count("cat"), 4)
        top = [{"token": str(i), "logprob": math.log(0.9 if i == digit else 0.025)} for i in range(1, 6)]
        choice = {"message": {"content": str(digit)}, "logprobs": {"content": [{"top_logprobs": top}]}}
        raw = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge():
    """URL#MODEL of the judge."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RatesCats)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#judge"
    server.shutdown()
    server.server_close()


class Strike(threading.Thread):
    """Kills rank 1 of a run, once, when it has told of `seen` steps."""

    def __init__(self, out, seen):
        super().__init__(daemon=True)
        self.out, self.seen, self.killed, self.over = Path(out), seen, 0, False

    def run(self):
        while not self.killed and not self.over:
            if sum("reward" in line for line in read_metrics(str(self.out))) >= self.seen:
                os.kill(json.loads((self.out / "workers.json").read_text())["pids"][1], signal.SIGKILL)
                self.killed = 1
            time.sleep(0.005)


def history(out):
    return [(line["step"], line["reward"], line["loss"]) for line in read_metrics(str(out)) if "reward" in line]


def test_the_direct_reward_goes_from_minus_one_to_one(tuned):
    reward = direct_reward(LikesCats(), Rating(template="{answer}", lowest=1, highest=5))
    assert reward(["p"] * 3, ["dog", "cat cat", "cat " * 9]) == pytest.approx([-1.0, 0.0, 1.0])
    model, _ = tuned
    values = direct([{"prompt": "say cat"}] * 2, ["cat cat", "dog"], judge=model, lowest=1, highest=3)
    assert all(-1 < value < 1 for value in values)
    assert values[0] != values[1]


def test_answers_labels_a_reward_model_and_ppo_make_more_of_what_the_judge_likes(tuned, tmp_path, crew):
    model, asked = tuned
    ppo = {
        "trainer": "ppo", **SHORT, "batch_rows": 32, "micro_rows": 16, "steps": 24, "checkpoint_every": 4,
        "objective": {"sampling": {"max_tokens": 12}, "kl": 0.02, "epochs": 2, "slots": 16},
    }  # fmt: skip
    settings = Rlaif(
        model=model, judge=Model(folder=model), data=(asked,), seq_len=128, chunk=24,
        comparing=Comparing(mode="log_prob", template="{prompt}|{first}|{second}|"),
        draw=Draw(temperature=1.0, max_tokens=12, samples=4), reward={**SHORT, "steps": 24}, policy=ppo,
    )  # fmt: skip
    whole = rlaif(settings, str(tmp_path / "whole"), LikesCats(), crew)
    labels = whole["labels"]
    assert labels["agreed"] > 10
    assert labels["unreadable"] + labels["ties"] + labels["agreed"] == labels["pairs"]
    assert whole["reward"]["last_loss"] < whole["reward"]["first_loss"] - 0.1
    # a worker dies within PPO: what was done before is not done again, and the end is the same
    cut = tmp_path / "cut"
    for name in ("answers", "packed", "reward", "labels"):
        os.renames(tmp_path / "whole" / name, cut / name)
    for name in ("loop.json", "labels.json", "reward.json"):
        (cut / name).write_text((tmp_path / "whole" / name).read_text().replace("/whole/", "/cut/"))
    strike = Strike(cut / "policy", 11)
    strike.start()
    again = rlaif(settings, str(cut), LikesCats(), crew)
    strike.over = True
    assert strike.killed == 1
    assert history(cut / "policy") == history(tmp_path / "whole/policy")
    before, after = (_cats(folder, asked) for folder in (model, again["policy"]["model"]))
    print(f"RLAIF by PPO: cats per answer {before:.2f} → {after:.2f}")
    assert after > before + 0.4, (before, after)  # 1.04 → 1.67 when it was written


def test_the_judges_expected_digit_is_the_reward_and_it_rises_also_when_a_worker_dies(tuned, judge, tmp_path, crew):
    model, asked = tuned
    settings = {"judge": judge, "template": "rate {answer}", "lowest": 1, "highest": 5}
    recipe = {
        **SHORT, "trainer": "grpo", "data": str(Path(model).parents[1] / "packed"), "start_from": model,
        "batch_rows": 16, "micro_rows": 8, "steps": 14, "checkpoint_every": 3, "export": False,
        "objective": {
            "prompts": asked, "rewards": {"trainers.feedback.rlaif:direct": settings}, "slots": 8,
            "sampling": {"max_tokens": 12, "samples": 4},
        },
    }  # fmt: skip
    strike = Strike(tmp_path / "struck", 7)
    strike.start()
    report = train(recipe, str(tmp_path / "struck"), crew=crew)
    strike.over = True
    assert report.restarts == 1
    train(recipe, str(tmp_path / "whole"), crew=crew)
    assert history(tmp_path / "struck") == history(tmp_path / "whole")
    rewards = [reward for _, reward, _ in history(tmp_path / "whole")]
    first, last = np.mean(rewards[:3]), np.mean(rewards[-3:])
    print(f"direct RLAIF: reward {first:.3f} → {last:.3f}")
    assert last > first + 0.6, [round(reward, 2) for reward in rewards]


def test_both_trainings_are_refused_before_the_first_answer(tmp_path):
    settings = Rlaif(model="m", judge=Model(folder="j"), data=("none.jsonl",), policy={"trainer": "ppo", "steps": None})
    with pytest.raises(RecipeError, match="say how many steps"):
        rlaif(settings, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_recipe_names_what_the_chain_makes(tmp_path):
    settings = Rlaif(
        model="m", judge=Model(folder="j"), data=("p",),
        policy={"trainer": "preference", "objective": {"reference": "REWARD"}},
    )  # fmt: skip
    reward, policy = recipes(settings, tmp_path)
    assert reward["data"] == str(tmp_path / "packed")
    assert policy["objective"] == {"reference": str(tmp_path / "reward/model")}
    assert recipes(settings.model_copy(update={"policy": {"trainer": "ppo", "steps": 3}}), tmp_path)[1] == {
        "trainer": "ppo", "steps": 3, "start_from": "m", "data": str(tmp_path / "packed"),
        "objective": {
            "prompts": str(tmp_path / "prompts.jsonl"), "reward_model": str(tmp_path / "reward/model"),
            "critic": str(tmp_path / "reward/model"),
        },
    }  # fmt: skip
    from_mapping(read_yaml(RECIPES / "rlaif_direct.yaml"))


def _cats(folder, asked):
    """Cats per sampled answer, counted as the judge counts them."""
    writer = Model(folder=folder).open()
    with open(asked) as lines:
        chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    texts = writer.write(chats, Draw(temperature=1.0, max_tokens=12, seed=5, samples=2))
    return sum(text.count("cat") for many in texts for text in many) / sum(len(many) for many in texts)
