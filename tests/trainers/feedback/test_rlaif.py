"""RLAIF: the direct reward, and the canonical chain over Ray and DeepSpeed with two workers, cut off once."""

import json
import math
import shutil

import pytest

from trainers.feedback.judge import Comparing, Rating
from trainers.feedback.rlaif import Rlaif, direct, direct_reward, rlaif
from trainers.feedback.writer import Draw, Model

SHORT = {"batch_rows": 8, "micro_rows": 4, "workers": 2, "device": "cpu", "schedule": {"rate": 3e-3, "warmup": 1}}


class LikesCats:
    """Finds the answer with more cats better, whatever the order."""

    name = "likes cats"

    def label_log_probs(self, chats, labels):
        if len(labels) == 2:
            counts = [[part.count("cat") for part in chat[-1]["content"].split("|")[1:3]] for chat in chats]
            return [[float(first), float(second)] for first, second in counts]
        best = [min(chat[-1]["content"].count("cat"), len(labels) - 1) for chat in chats]
        return [[0.0 if i == place else -40.0 for i in range(len(labels))] for place in best]


def test_the_direct_reward_goes_from_minus_one_to_one(tuned):
    reward = direct_reward(LikesCats(), Rating(template="{answer}", lowest=1, highest=5))
    assert reward(["p"] * 3, ["dog", "cat cat", "cat " * 9]) == pytest.approx([-1.0, 0.0, 1.0])
    model, _ = tuned
    value = direct({"prompt": "say cat"}, "cat cat", judge=model, lowest=1, highest=3)
    assert -1 < value < 1
    assert not math.isnan(value)


def test_labels_of_a_judge_move_the_policy_as_it_counts_and_a_cut_chain_ends_the_same(tuned, tmp_path):
    model, asked = tuned
    settings = Rlaif(
        model=model, judge=Model(folder=model), data=(asked,), seq_len=128, chunk=24,
        comparing=Comparing(mode="log_prob", template="{prompt}|{first}|{second}|"),
        draw=Draw(temperature=1.0, max_tokens=8, samples=3),
        reward={**SHORT, "steps": 12},
        policy={"trainer": "preference", "objective": {"beta": 0.5}, **SHORT, "steps": 12},
    )  # fmt: skip
    whole = rlaif(settings, str(tmp_path / "whole"), LikesCats())
    assert whole["labels"]["agreed"] > 10
    labels = whole["labels"]
    assert labels["unreadable"] + labels["ties"] + labels["agreed"] == labels["pairs"]
    assert whole["reward"]["last_loss"] < whole["reward"]["first_loss"] - 0.1
    assert whole["policy"]["last_loss"] < 0.6
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/policy.json").unlink()
    shutil.rmtree(tmp_path / "cut/policy")
    again = rlaif(settings, str(tmp_path / "cut"), LikesCats())
    assert again["reward"] == whole["reward"]  # not trained again
    assert again["policy"]["last_loss"] == whole["policy"]["last_loss"]
    before, after = (_cats(folder, asked) for folder in (model, again["policy"]["model"]))
    assert after > before + 0.5  # 1.04 → 2.17 when it was written


def _cats(folder, asked):
    """Cats per sampled answer, counted as the judge counts them."""
    writer = Model(folder=folder).open()
    with open(asked) as lines:
        chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    texts = writer.write(chats, Draw(temperature=1.0, max_tokens=8, seed=5, samples=2))
    return sum(text.count("cat") for many in texts for text in many) / sum(len(many) for many in texts)
