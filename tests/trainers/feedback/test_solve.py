"""Problems solved by a tiny model: samples, a search by steps and forced thoughts, with what each of them cost."""

import json
from pathlib import Path

import pytest
import torch

from cluster.errors import DataError, RecipeError
from cluster.settings import make
from corpusmill import main
from trainers.feedback.local import open_model
from trainers.feedback.solve import Solve, judged, solve, steps_of
from trainers.reward import classifier


@pytest.fixture(scope="module")
def folders(chat_tokenizer, tmp_path_factory):
    """(model, reward model, problems) of random weights."""
    from transformers import AutoTokenizer

    from trainers.model import ModelSettings, build

    out = tmp_path_factory.mktemp("solve")
    shape = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64, init_std=0.2)
    lm = build(shape, vocab_size=302, seq_len=192, seed=0, pad=0, eos=1)
    lm.save_pretrained(out / "lm")
    classifier(lm, 1.0, 0).save_pretrained(out / "reward")
    for name in ("lm", "reward"):
        AutoTokenizer.from_pretrained(chat_tokenizer).save_pretrained(out / name)
    rows = [{"question": f"{n} + 1", "answer": f"#### {n + 1}"} for n in range(3)]
    (out / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(out / "lm"), str(out / "reward"), str(out / "problems.jsonl")


@pytest.fixture
def recipe(folders):
    lm, reward, problems = folders
    return {
        "data": [problems], "model": lm, "outcome": reward, "process": reward, "step_end": "a", "beams": 2, "width": 2,
        "draw": {"temperature": 1.0, "samples": 4, "max_tokens": 24}, "step_tokens": 8, "most_steps": 3,
        "chunk": 2, "workers": 1,
        "budgets": [{"least": 0, "most": 8, "end": "a"}, {"least": 30, "most": 40, "end": "a", "wait": "b"}],
    }  # fmt: skip


def test_every_way_is_reported_with_what_it_cost_and_a_repeated_call_repeats_nothing(
    recipe, tmp_path, local_ray, capsys
):
    (tmp_path / "solve.yaml").write_text(json.dumps(recipe))
    arguments = ["feedback", "solve", str(tmp_path / "solve.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split()[-3:] == ["1", "2", "4"]
    lines = {(line["method"], line["n"]): line for line in json.loads((tmp_path / "out/report.json").read_text())}
    assert {method for method, n in lines if n == 4} >= {"majority", "outcome", "weighted", "process_min", "beam"}
    rows = [json.loads(line) for line in (tmp_path / "out/solutions.jsonl").read_text().splitlines()]
    assert [len(row["solutions"]) for row in rows] == [4, 4, 4]
    assert lines["majority", 4]["tokens"] == pytest.approx(sum(sum(row["tokens"]) for row in rows) / 3)
    assert lines["budget 0-8", 1]["tokens"] <= 8 + 32
    assert 30 < lines["budget 30-40", 1]["tokens"] <= 40 + 32
    longest = max(len(row["steps"][i]) for row in rows for i in range(4))
    assert longest > 1
    for text, steps in ((t, s) for row in rows for t, s in zip(row["solutions"], row["steps"], strict=True)):
        assert len(steps_of(text, "a")) - len(steps) in (0, 1, 2)  # several that end within one token have one score
    for part in Path(tmp_path, "out/parts").iterdir():
        part.chmod(0o444)
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == told


def test_a_step_is_judged_by_the_value_of_the_text_up_to_its_end(folders):
    from transformers import AutoModelForSequenceClassification

    lm, folder, _ = folders
    local = open_model(lm)
    reward = AutoModelForSequenceClassification.from_pretrained(folder).eval().requires_grad_(False)
    chat, text = [{"role": "user", "content": "2 + 2"}], "so 4\nor 5 then\nit is 4"
    (found,) = judged(folder, chat, [text], [steps_of(text, "\n")])
    for score, end in zip(found, ("so 4", "or 5 then", "it is 4"), strict=True):
        ids = local.ids(local.render(chat) + text[: text.index(end) + len(end)])
        logits = reward(torch.tensor([ids])).logits
        assert score == pytest.approx(float(logits[0, 0].sigmoid()), abs=1e-5)
    whole = local.ids(local.render(chat) + text + "<|im_end|>")
    ((outcome,),) = judged(folder, chat, [text])
    assert outcome == pytest.approx(float(reward(torch.tensor([whole])).logits[0, 0].sigmoid()), abs=1e-5)
    together = judged(folder, chat, [text, "x", "", text * 2], [steps_of(t, "\n") for t in (text, "x", "", text * 2)])
    assert together[0] == pytest.approx(found, abs=1e-5)
    assert together[2] == []


def test_what_cannot_be_solved_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match="guided by a reward model of steps"):
        solve(make(Solve, {**recipe, "process": None}, "solve"), str(tmp_path))
    for text, message in (
        ("", "holds no problem"),
        ('{"prompt": "a"}\n', "example 1: a problem has a `prompt` and an"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            solve(make(Solve, {**recipe, "data": [str(tmp_path / "bad.jsonl")]}, "solve"), str(tmp_path))
