import json

import pytest

from cluster.errors import RecipeError
from trainers.log import read_metrics
from trainers.scaling.sweep import Sweep, summary, sweep
from trainers.train import train


@pytest.fixture(scope="module")
def settings(packed):
    shape = {"layers": 1, "heads": 2, "intermediate_size": 32}
    base = {"data": str(packed), "schedule": {"rate": 1e-2, "warmup": 2}, "batch_rows": 12, "micro_rows": 6}
    return Sweep(
        base={**base, "workers": 1, "device": "cpu"},
        models=[{**shape, "hidden_size": 8}, {**shape, "hidden_size": 16}],
        steps=[10, 20, 30],
        predict={"model": {**shape, "hidden_size": 24}, "steps": 30},
        samples=20,
    )


@pytest.fixture(scope="module")
def swept(crew, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return out, sweep(settings, str(out), crew=crew)


def test_a_sweep_measures_fits_and_predicts(swept):
    out, result = swept
    assert len(result["points"]) == result["fit"]["runs"] == 6
    assert result["predicted"] == pytest.approx(result["measured"] * (1 + result["error"]))
    by_size = {}
    for point in result["points"]:
        by_size.setdefault(point["parameters"], []).append(point["loss"])
    assert all(losses == sorted(losses, reverse=True) for losses in by_size.values())  # more tokens, less loss
    assert json.loads((out / "sweep.json").read_text())["measured"] == result["measured"]


def test_a_finished_sweep_is_read_back(swept, settings):
    out, result = swept
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    assert sweep(settings, str(out))["points"] == result["points"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == trained


def test_a_law_of_before_is_enough_for_the_larger_run(swept, settings, crew, tmp_path):
    out, result = swept
    again = sweep(settings.model_copy(update={"fitted": str(out / "sweep.json")}), str(tmp_path), crew=crew)
    assert again["predicted"] == result["predicted"]
    assert again["measured"] == result["measured"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predicted", "report.html", "sweep.json"]
    assert f"measured {result['measured']:.4f}" in (tmp_path / "report.html").read_text()


def test_a_branch_is_the_run_of_its_length(swept, settings, recipe, crew, tmp_path):
    """Trunk plus decay gives the losses of one run with the same warmup, stable rate and decay, bit by bit."""
    changes = {"model": settings.models[0], "steps": 20, "micro_rows": 6, "export": False}
    schedule = {"rate": 1e-2, "warmup": 2, "decay": 4}
    whole = train(recipe(**changes, schedule=schedule), str(tmp_path / "whole"), crew=crew)
    lines = read_metrics(str(swept[0] / "size-0/decay-00000020"))
    branch = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert branch == {step - 16: loss for step, loss in whole.losses.items() if step > 16}


def test_fixed_compute_gives_every_size_the_steps_that_it_can_pay(crew, settings, tmp_path):
    models = [{**shape, "hidden_size": size} for shape, size in zip([settings.models[0]] * 3, (8, 16, 24), strict=True)]
    changes = {"steps": None, "budgets": [2e9, 3e9], "models": models, "predict": None}
    found = sweep(settings.model_copy(update=changes), str(tmp_path), crew=crew)
    assert len(found["points"]) == 6
    for point in found["points"]:
        assert 6 * point["parameters"] * point["tokens"] == pytest.approx(point["flops"], rel=0.1)
    assert len({point["flops"] for point in found["points"]}) == 2
    assert "isoflop" in found  # a law, or why these curves have none
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 2 and ">parameters<" in page  # against tokens, and against parameters
    assert summary(found)[0].split()[:3] == ["parameters", "tokens", "loss"]
    with pytest.raises(RecipeError, match=r"1e\+06 FLOP are 0 steps of 12 rows"):
        sweep(settings.model_copy(update={**changes, "budgets": [1e6, 2e6]}), str(tmp_path / "small"), crew=crew)


def test_a_sweep_varies_the_length_or_the_compute(settings):
    with pytest.raises(RecipeError, match=r"either steps .* or budgets"):
        settings.model_copy(update={"budgets": [1e9, 2e9]}).check()
    with pytest.raises(RecipeError, match="must be different"):
        settings.model_copy(update={"steps": [10, 10, 20]}).check()


def test_too_few_runs_for_a_law_are_refused(settings):
    with pytest.raises(RecipeError, match="2 sizes x 2 lengths are 4 runs"):
        settings.model_copy(update={"steps": [10, 20]}).check()
    with pytest.raises(RecipeError, match="base sets epochs"):
        settings.model_copy(update={"base": {**settings.base, "epochs": 2}}).check()
