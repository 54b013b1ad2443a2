"""SPIN end to end over Ray and DeepSpeed with two workers, cut off once."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cluster.errors import RecipeError
from trainers.feedback.spin import Spin, real_pairs, spin
from trainers.feedback.writer import Draw, Model

SHORT = {"batch_rows": 8, "micro_rows": 4, "workers": 2, "device": "cpu", "schedule": {"rate": 2e-3, "warmup": 1}}


def drawn(folder: Path) -> list[str]:
    """The answers of a round, in order."""
    return [row["texts"][0] for part in sorted(folder.glob("part-*.json")) for row in json.loads(part.read_text())]


def like_real(folder: str, asked: str) -> float:
    """Share of a model's answers that have the form of the real ones."""
    chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in Path(asked).read_text().splitlines()]
    draw = Draw(temperature=1.0, max_tokens=10, seed=9, samples=8)
    texts = [text for many in Model(folder=folder).open().write(chats, draw) for text in many]
    return sum(re.fullmatch(r"cat( end){1,3}", text.strip()) is not None for text in texts) / len(texts)


def test_two_rounds_of_play_come_closer_to_real_answers_and_a_cut_run_ends_the_same(tuned, tmp_path, crew):
    model, asked = tuned
    settings = Spin(
        model=model, data=(asked,), iterations=2, beta=0.5, draw={"temperature": 1.0, "max_tokens": 10},
        seq_len=128, train={**SHORT, "steps": 6}, chunk=16,
    )  # fmt: skip
    whole = spin(settings, str(tmp_path / "whole"), crew)
    assert whole[0]["first_loss"] == pytest.approx(0.6931472, abs=1e-5)  # the player is its own opponent at first
    assert all(one["last_loss"] < 0.6 for one in whole)
    # cut off after the first round and in the middle of the second one's answers
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    second = tmp_path / "cut/round-1"
    for name in ("run", "packed"):
        shutil.rmtree(second / name)
    for name in ("result.json", "packed.json", "pairs.jsonl", "answers/part-00000016.json"):
        (second / name).unlink()
    first = json.loads((tmp_path / "cut/round-0/result.json").read_text())
    assert first["model"] == whole[0]["model"]
    again = spin(settings, str(tmp_path / "cut"), crew)
    for name in ("first_loss", "last_loss", "pairs", "same_as_real"):
        assert again[1][name] == whole[1][name]
    pairs = "round-1/pairs.jsonl"
    assert (tmp_path / "cut" / pairs).read_bytes() == (tmp_path / "whole" / pairs).read_bytes()
    # the second round plays against the player that the first one made
    assert drawn(tmp_path / "whole/round-1/answers") != drawn(tmp_path / "whole/round-0/answers")
    start, end = (like_real(folder, asked) for folder in (model, whole[1]["model"]))
    print(f"SPIN: answers of the real form {start:.3f} → {end:.3f}")
    assert end > start + 0.05  # 0.43 → 0.53 of 384 answers when it was written
    with pytest.raises(RecipeError, match="other values of beta"):
        spin(settings.model_copy(update={"beta": 0.1}), str(tmp_path / "whole"))


def test_real_answers_are_found_in_the_usual_shapes():
    rows = [
        {"prompt": "p", "answer": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
    ]
    assert [answer for _, answer in real_pairs(rows)] == ["a"] * 3
