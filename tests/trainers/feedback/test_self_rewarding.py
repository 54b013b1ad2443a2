"""Self-rewarding: its parts by hand, and two rounds over Ray and DeepSpeed with two workers, cut off once."""

import json
import shutil

import pytest

from cluster.errors import DataError, RecipeError
from trainers.feedback.judge import Rating
from trainers.feedback.self_rewarding import SelfRewarding, agreement, best_and_worst, judging_examples, self_rewarding
from trainers.feedback.writer import Draw

SHORT = {"batch_rows": 8, "micro_rows": 4, "workers": 2, "device": "cpu"}


def test_the_best_and_the_worst_answer_become_a_pair_and_equal_ones_none():
    answers = [["a", "b", "c"], ["a", "b"], ["a", "a"]]
    pairs = best_and_worst(["p", "q", "r"], answers, [[1.0, 3.0, 2.0], [2.0, 2.0], [1.0, 2.0]], 0.0)
    assert pairs == [{"prompt": "p", "chosen": "b", "rejected": "a"}]


def test_agreement_counts_pairs_of_one_prompt():
    rows = [{"prompt": p, "answer": "", "score": s} for p, s in (("p", 5), ("p", 1), ("q", 3), ("q", 2))]
    assert agreement(rows, [4.6, 1.2, 2.0, 2.0]) == pytest.approx({"pairs": 0.75, "exact": 0.75, "error": 0.4})


def test_two_rounds_learn_from_pairs_that_the_model_judged_and_a_cut_loop_ends_the_same(tuned, tmp_path, crew):
    model, asked = tuned
    with open(asked) as lines:
        prompts = [json.loads(line) for line in lines]
    for row in prompts[24:]:  # as self_instruct writes them
        said = (("user", row.pop("prompt")), ("assistant", row.pop("answer")))
        row["messages"] = [{"role": role, "content": text} for role, text in said]
    judging = Rating(template="{answer}\nrate", lowest=0, highest=5, lead="")
    texts = [("cat end", 5), ("cat cat", 5), ("dog end", 0), ("sun end end", 0), ("cat end end", 5), ("hat", 0)] * 8
    eft = [{"prompt": "p", "answer": text, "score": score} for text, score in texts]
    files = {"eft": eft, "held_out": eft[:6], "prompts": prompts}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert judging_examples(eft[:1], judging) == [{"prompt": "cat end\nrate", "answers": ["5"]}]
    settings = SelfRewarding(
        model=model, ift=(asked,), judging=judging, per_round=24, iterations=2, seq_len=128, chunk=12, beta=0.5,
        **{name: (str(tmp_path / f"{name}.jsonl"),) for name in files},
        draw=Draw(temperature=1.0, max_tokens=12, samples=4),
        begin={**SHORT, "steps": 60, "schedule": {"rate": 5e-3, "warmup": 2}},
        train={**SHORT, "steps": 6, "schedule": {"rate": 6e-4, "warmup": 1}},
    )  # fmt: skip
    whole = self_rewarding(settings, str(tmp_path / "whole"), crew)
    assert whole[0]["agreement"]["pairs"] > 0.8  # chance is 0.5
    assert all(one["first_loss"] == pytest.approx(0.6931472, abs=1e-5) for one in whole[:-1])
    assert all(one["last_loss"] < 0.4 for one in whole[:-1])
    scores = [round(one["mean_score"], 3) for one in whole[:-1]]
    print(f"self-rewarding: own mean score {scores}, agreement {[one['agreement']['pairs'] for one in whole]}")
    assert scores[1] > scores[0] + 0.25  # 2.87 → 3.22 when it was written
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/round-1/run")
    for name in ("round-1/result.json", "round-1/scores/part-00000000.json"):
        (tmp_path / "cut" / name).unlink()
    again = self_rewarding(settings, str(tmp_path / "cut"), crew)
    for name in ("mean_score", "last_loss", "pairs", "agreement"):
        assert again[1][name] == whole[1][name]
    with pytest.raises(RecipeError, match="48 prompts, 3 rounds take 24 each"):
        self_rewarding(settings.model_copy(update={"iterations": 3}), str(tmp_path / "more"))
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "say cat"}\n')
    with pytest.raises(DataError, match=r"example 1: neither `prompt` nor `messages`; found instruction"):
        self_rewarding(settings, str(tmp_path / "other"))
