"""What training recipes would do is told, and what cannot work refused, before anything starts."""

import json

import pytest
import yaml

import corpusmill
from cluster.settings import Settings
from trainers import plan
from trainers.feedback.command import ACTIONS

TINY = "recipes/tiny_pretrain.yaml"


@pytest.mark.parametrize("name", plan.PARTS)
def test_every_block_is_a_settings_class_that_says_what_it_is(name, capsys):
    assert issubclass(plan.settings_of(name), Settings)
    assert plan.part_docs()[name]
    assert corpusmill.main(["steps", name]) == 0
    told = capsys.readouterr().out
    fields = plan.settings_of(name).model_fields
    assert all(field.description for key, field in fields.items() if key != "method"), name
    assert all((field.alias or key) in told for key, field in fields.items())


@pytest.mark.parametrize(
    ("name", "values"),
    [("trainer.grpo", "grpo, dr_grpo, rloo, reinforce_pp"), ("trainer.preference", "dpo, ipo, cdpo, robust, hinge")],
)
def test_the_values_that_a_setting_can_have_are_told(name, values, capsys):
    assert corpusmill.main(["steps", name]) == 0
    assert values in capsys.readouterr().out


def test_the_command_knows_every_feedback_action():
    assert corpusmill.FEEDBACK == ACTIONS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("schedule.rat=1", "did you mean 'rate'"),
        ("engine.zero=7", "engine: setting 'zero'"),
        ("objective.validation_row=3", "did you mean 'validation_rows'"),
        ("model.heads=7", "rotary positions need an even whole number"),
        ("trainer=pretrian", "setting 'trainer': no trainer named 'pretrian'; did you mean 'pretrain'"),
        ("trainer=dpo", "trainer: preference, objective: {loss: dpo}"),
        ("steps=10", "give one of steps, tokens, epochs"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_without_a_worker(change, told, capsys):
    assert corpusmill.main(["plan", TINY, "--set", change]) == 2
    assert told in capsys.readouterr().err


def test_the_plan_counts_as_the_run_will(tmp_path, capsys):
    about = {"rows": 100, "tokens": 24_000, "vocab_size": 4096, "seq_len": 256}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    changes = [f"--set={change}" for change in (f"data={tmp_path}", "epochs=2", "batch_rows=16")]
    assert corpusmill.main(["plan", TINY, *changes]) == 0
    told = capsys.readouterr().out
    assert "100 rows of 256, 24,000 tokens" in told
    assert "steps      12 of 16 rows, about 3,840 tokens each; 1.9 passes" in told


def test_the_plan_of_a_run_on_own_answers_counts_answers(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(json.dumps({"rows": 9, "tokens": 900, "vocab_size": 99, "seq_len": 128}))
    recipe = tmp_path / "grpo.yaml"
    recipe.write_text(
        f"trainer: grpo\ndata: {tmp_path}\nstart_from: {tmp_path}/later\nsteps: 3\nbatch_rows: 16\n"
        "objective: {prompts: p.jsonl, rewards: {number: 1.0}, sampling: {samples: 4}}\n"
    )
    assert corpusmill.main(["plan", str(recipe)]) == 0, capsys.readouterr().err
    assert "steps      3 of 16 answers to the prompts in p.jsonl\n" in capsys.readouterr().out


@pytest.mark.parametrize("action", ACTIONS)
def test_a_feedback_recipe_is_known_by_its_fields(action, capsys):
    assert corpusmill.main(["plan", f"recipes/feedback/{action}.yaml"]) == 0
    assert f"feedback   {action}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "recipe", "told"),
    [
        ("run", TINY, "`corpusmill train`, not of `corpusmill run`"),
        ("train", "recipes/tiny.yaml", "`corpusmill run`, not of `corpusmill train`"),
        ("train", "recipes/scale/pretrain_sweep.yaml", "`corpusmill scale sweep`, not of `corpusmill train`"),
        ("scale sweep", TINY, "`corpusmill train`, not of `corpusmill scale sweep`"),
        ("feedback spin", "recipes/tiny.yaml", "`corpusmill run`, not of `corpusmill feedback spin`"),
    ],
)
def test_another_commands_recipe_is_sent_to_it(verb, recipe, told, tmp_path, capsys):
    assert corpusmill.main([*verb.split(), recipe, "--out", str(tmp_path / "made")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_later_stages_take_what_earlier_ones_make(tmp_path, capsys):
    stages = {"a": {"trainer": "sft", "data": "d"}, "b": {"trainer": "reward", "data": "d", "start_from": "{a}"}}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert corpusmill.main(["plan", str(tmp_path / "chain.yaml")]) == 0
    assert "model      what stage a makes" in capsys.readouterr().out
