"""RLHF as one recipe: every stage takes the model of the one before, and what is done is not done again."""

import json
import re
from pathlib import Path

import pytest

import corpusmill
from cluster.errors import RecipeError
from trainers.chain import stages_of, train_chain


def test_rlhf_runs_as_one_recipe_and_a_finished_stage_is_not_run_again(recipe, preferences, tmp_path, crew):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(16)))
    both = {"data": str(preferences), "workers": 2, "batch_rows": 8, "objective": {}}
    trained = {"model": {}, "start_from": "{sft}"}
    ppo = {
        "prompts": str(prompts), "reward_model": "{reward}", "critic": "{reward}", "epochs": 2,
        "sampling": {"max_tokens": 8}, "kl": 0.01,
    }  # fmt: skip
    raw = {
        "stages": {
            "sft": recipe(**both, trainer="sft", steps=4),
            "reward": recipe(**both | {"objective": {"learn": "ranking"}}, trainer="reward", steps=6, **trained),
            "ppo": recipe(**both | {"objective": ppo}, trainer="ppo", steps=4, **trained),
        }
    }
    out = str(tmp_path / "run")
    stages = stages_of(raw, out)
    assert stages["ppo"].objective["reward_model"] == f"{out}/reward/model"
    first = train_chain(stages, out, crew=crew)
    assert [report.steps_done for report in first.values()] == [4, 6, 4]
    page = Path(out, "report.md").read_text()
    for row in (
        "| sft | sft | 4 | loss |",
        "| reward | reward | 6 | validation_accuracy |",
        "| ppo | ppo | 4 | reward |",
    ):
        assert row in page
    shown = Path(out, "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', shown)
    assert set(links) == {f"{name}/report.html" for name in stages}
    assert all(Path(out, link).is_file() for link in links)
    Path(out, "report.html").unlink()
    assert corpusmill.main(["report", out]) == 0
    assert Path(out, "report.html").read_text() == shown
    again = train_chain(stages, out, crew=crew)
    assert [report.steps_done for report in again.values()] == [0, 0, 0]
    assert Path(out, "report.md").read_text() == page


def test_a_stage_names_only_earlier_stages(recipe):
    with pytest.raises(RecipeError, match=r"stages\.one: no earlier stage named 'two'"):
        stages_of({"stages": {"one": recipe(start_from="{two}", model={}), "two": recipe()}}, "out")
    with pytest.raises(RecipeError, match="and nothing else"):
        stages_of({"stages": {"one": recipe()}, "steps": 3}, "out")
