"""The command: every recipe of recipes/feedback is understood, and `select` tells its figures."""

import json
from pathlib import Path

import pytest

from cluster.errors import RecipeError
from cluster.settings import make, read_yaml
from corpusmill import main
from trainers.feedback.command import ACTIONS, JudgeFile, SelectFile, feedback
from trainers.feedback.evol_instruct import EvolInstruct
from trainers.feedback.rlaif import Rlaif, recipes
from trainers.feedback.self_instruct import SelfInstruct
from trainers.feedback.self_rewarding import SelfRewarding
from trainers.feedback.solve import Solve
from trainers.feedback.spin import Spin
from trainers.recipe import from_mapping

FOLDER = Path(__file__).parents[3] / "recipes/feedback"
KINDS = (JudgeFile, SelectFile, Solve, Rlaif, Spin, SelfRewarding, SelfInstruct, EvolInstruct)


@pytest.mark.parametrize(("action", "kind"), zip(ACTIONS, KINDS, strict=True), ids=ACTIONS)
def test_each_recipe_names_settings_that_exist(action, kind):
    made = make(kind, read_yaml(FOLDER / f"{action}.yaml"), action)
    parts = [getattr(made, name) for name in ("train", "begin") if hasattr(made, name)]
    for part in recipes(made, Path("out")) if isinstance(made, Rlaif) else parts:
        from_mapping({"data": "x", "start_from": "y", **part})


@pytest.mark.parametrize("action", ACTIONS)
def test_the_command_line_knows_every_action(action, tmp_path, capsys):
    assert main(["feedback", action, str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_select_tells_and_writes_what_each_method_reaches(tmp_path, capsys):
    problem = {"solutions": ["so 3", "so 4", "it is 4"], "answer": "#### 4", "tokens": [2, 2, 3]}
    (tmp_path / "in.jsonl").write_text(json.dumps(problem) + "\n")
    (tmp_path / "select.yaml").write_text(f"data: [{tmp_path}/in.jsonl]\nns: [1, 3]\n")
    arguments = ["feedback", "select", str(tmp_path / "select.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].split() == ["majority", "66.67%", "100.00%"]
    assert told[3].split()[-2:] == ["2.3", "7.0"]
    assert len(json.loads((tmp_path / "out/report.json").read_text())) == 4
    with pytest.raises(RecipeError, match="no setting named 'method'"):
        list(feedback("select", str(tmp_path / "select.yaml"), str(tmp_path), ["method=majority"]))
