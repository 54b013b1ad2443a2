from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.errors import RecipeError
from cluster.settings import make, read_yaml
from trainers.engine import EngineSettings
from trainers.model import ModelSettings
from trainers.pretrain import Pretrain
from trainers.recipe import from_mapping, load_recipe
from trainers.scaling.shape import load_shapes
from trainers.scaling.sweep import load_sweep
from trainers.schedule import Schedule

RECIPES = Path(__file__).parents[2] / "recipes"


PRETRAINING = [*RECIPES.glob("*pretrain*.yaml"), RECIPES / "continue.yaml", *RECIPES.glob("scale/*.yaml")]


@pytest.mark.parametrize("path", sorted(PRETRAINING), ids=lambda path: path.name)
def test_every_training_recipe_is_valid_to_its_last_setting(path):
    raw = read_yaml(str(path))
    if "models" in raw:
        sweep = load_sweep(str(path))
        recipes = [from_mapping({**sweep.base, "model": shape}) for shape in sweep.models]
    elif "parameters" in raw:
        study = load_shapes(str(path))
        recipes = [from_mapping({**study.base, "model": asdict(shape)}) for shape in study.check()]
    else:
        recipes = [load_recipe(str(path))]
    for recipe in recipes:
        make(ModelSettings, recipe.model, "model").check()
        make(EngineSettings, recipe.engine, "engine").check()
        make(Schedule, recipe.schedule, "schedule")
        make(Pretrain, recipe.objective, "objective")


def test_a_run_is_as_long_as_it_says():
    base = {"data": "x", "batch_rows": 10}
    assert from_mapping({**base, "steps": 7}).total_steps(100, 5000) == 7
    assert from_mapping(base).total_steps(105, 5000) == 10
    assert from_mapping({**base, "epochs": 2.5}).total_steps(100, 5000) == 25
    assert from_mapping({**base, "tokens": 10_000}).total_steps(100, 5000) == 20


def test_what_contradicts_is_refused():
    with pytest.raises(RecipeError, match="no trainer named 'pretrane'; did you mean 'pretrain'"):
        from_mapping({"data": "x", "trainer": "pretrane"})
    with pytest.raises(RecipeError, match="takes its model from the old run"):
        from_mapping({"data": "x", "model": {"layers": 2}, "continue": {"run": "y"}})
    with pytest.raises(RecipeError, match="replay is for rows: new"):
        from_mapping({"data": "x", "continue": {"run": "y", "rows": "next", "replay": 0.5}})
    with pytest.raises(RecipeError, match="offload_weights needs zero: 3"):
        EngineSettings(zero=1, offload_weights=True).check()


def test_the_recipe_survives_being_written():
    recipe = from_mapping({"data": {"a": 0.5, "b": 0.5}, "continue": {"run": "y", "at": 30}})
    assert from_mapping(recipe.plain()) == recipe


def test_a_run_from_a_corner_keeps_its_rate_without_a_warmup_unless_it_says_otherwise():
    before = {"schedule": {"rate": 7e-4, "warmup": 0.1, "decay": 0.5}}

    def rates(at, **schedule):
        return from_mapping({"data": "x", "schedule": schedule, "continue": {"run": "y", "at": at}}).rates(before)

    assert rates("corner", decay=0.3) == {"rate": 7e-4, "warmup": 0, "decay": 0.3}
    assert rates("corner", rate=1e-3, warmup=5) == {"rate": 1e-3, "warmup": 5}
    assert rates("final", decay=0.3) == {"decay": 0.3}
    assert from_mapping({"data": "x", "schedule": {"rate": 1e-3}}).rates(None) == {"rate": 1e-3}
