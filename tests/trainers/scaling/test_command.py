import json

import numpy as np
import pytest

from cluster.errors import DataError, RecipeError
from trainers.scaling import command
from trainers.scaling.law import Law
from trainers.scaling.repeated import RepeatedLaw

LAW = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("scale") / "runs.jsonl"
    with path.open("w") as out:
        for _ in range(40):
            n, d = np.exp(rng.uniform(16, 21)), np.exp(rng.uniform(20, 25))
            loss = float(LAW.loss(n, d)) * np.exp(rng.normal(0, 0.002))
            out.write(json.dumps({"parameters": n, "tokens": d, "loss": loss}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def fitted(table):
    return command.fit_law(table, samples=60)


def test_a_plan_holds_the_truth_in_its_interval(fitted):
    n, d, loss = LAW.optimum(1e20)
    planned = command.plan(fitted, flops=1e20)
    for name, truth in (("parameters", n), ("tokens", d), ("loss", loss)):
        low, high = planned["intervals"][name]
        assert low * 0.98 <= truth <= high * 1.02
    assert planned["tokens_per_parameter"] == pytest.approx(planned["tokens"] / planned["parameters"])
    assert command.plan(fitted, parameters=n, tokens=d)["loss"] == pytest.approx(loss, rel=0.01)


def test_an_extrapolation_is_called_one(fitted):
    assert command.plan(fitted, flops=1e24)["extrapolates"] == ["parameters", "tokens"]
    assert command.plan(fitted, parameters=3e8, tokens=2e10)["extrapolates"] == []


def test_repeating_tokens_costs_loss(fitted):
    once = command.plan(fitted, parameters=3e8, tokens=2e10)["loss"]
    assert command.plan(fitted, parameters=3e8, tokens=2e10, unique_tokens=1e9)["loss"] > once


def test_predictions_stand_beside_what_was_measured(fitted, table):
    rows = command.predicted_against_measured(fitted, table)
    assert len(rows) == 40
    assert max(abs(row["error"]) for row in rows) < 0.01


def test_what_is_missing_is_named(tmp_path, fitted):
    (tmp_path / "runs.csv").write_text("size,loss\n1,2\n")
    with pytest.raises(DataError, match="no column for parameters"):
        command.read_runs(str(tmp_path / "runs.csv"))
    with pytest.raises(RecipeError, match="give either flops, or both"):
        command.plan(fitted, parameters=1e9)


def test_one_size_or_one_length_gives_no_law_of_both(tmp_path):
    (tmp_path / "runs.csv").write_text(
        "parameters,tokens,loss\n" + "".join(f"1e6,{d}e6,{9 - d}\n" for d in range(1, 8))
    )
    with pytest.raises(DataError, match=r"7 runs of 1 sizes and 7 lengths.*2 sizes and 2 lengths"):
        command.fit_law(str(tmp_path / "runs.csv"))
    with pytest.raises(RecipeError, match="drop-worst 3 of 7 runs: 6 or more"):
        command.fit_law(str(tmp_path / "runs.csv"), drop_worst=3)
    (tmp_path / "one.csv").write_text("parameters,tokens,loss\n1e6,1e6,3\n")
    with pytest.raises(DataError, match=r"1 runs of 1 sizes .* need 6 runs or more"):
        command.fit_law(str(tmp_path / "one.csv"))
    with pytest.raises(DataError, match="1 runs at 1 budgets, of which 0 have 3"):
        command.fit_isoflop(str(tmp_path / "one.csv"))


def test_numbers_that_no_run_has_are_refused(fitted):
    for wrong in ({"flops": -1e20}, {"flops": float("nan")}, {"parameters": 0.0, "tokens": 1e9}):
        with pytest.raises(RecipeError, match="positive numbers were expected"):
            command.plan(fitted, **wrong)


def test_laws_of_one_variable_go_through_the_frontier(tmp_path):
    rng = np.random.default_rng(1)
    rows = ["parameters,tokens,loss"]
    for n in np.exp(np.linspace(14, 20, 12)):
        rows.append(f"{n},1e12,{(1e13 / n) ** 0.08}")
        rows += [f"{n},{1e12 * share},{(1e13 / n) ** 0.08 * (1 + share)}" for share in rng.uniform(0.1, 0.9, 3)]
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    law = command.fit_single(str(tmp_path / "runs.csv"))["parameters"]
    assert (law["exponent"], law["scale"], law["points"]) == pytest.approx((0.08, 1e13, 12))
    assert law["chance"] < 1e-8


def test_a_frontier_through_noise_is_told_from_a_law(tmp_path):
    rng, chances = np.random.default_rng(0), []
    for _ in range(40):
        rows = "".join(f"{n},1e9,{loss}\n" for n, loss in zip(range(1, 13), rng.uniform(2, 4, 12), strict=True))
        (tmp_path / "runs.csv").write_text("N,D,loss\n" + rows)
        try:
            chances.append(command.fit_single(str(tmp_path / "runs.csv"))["parameters"]["chance"])
        except DataError:  # fewer than 3 on it
            chances.append(1.0)
    assert np.mean(np.array(chances) <= 0.05) <= 0.1


def test_two_setups_in_one_curve_are_refused_and_one_can_be_chosen(tmp_path):
    rows = ["flops,parameters,loss,setup"]
    for c, best in ((1e16, 1e6), (1e17, 4e6), (1e18, 1.6e7)):
        for n in best * np.array([0.25, 0.5, 1, 2, 4]):
            rows += [
                f"{c},{n},{3 + 0.1 * np.log(n / best) ** 2 + more},{name}" for more, name in ((0, "a"), (0.1, "b"))
            ]
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"2 runs of 2\.5e\+05 parameters at 1e\+16 FLOP"):
        command.fit_isoflop(str(path))
    for method in ("akima", "parabola"):
        found = command.fit_isoflop(str(path), method, ["setup=b"])
        assert found["sizes"]["exponent"] == pytest.approx(np.log10(4), abs=1e-3)


def test_a_law_of_repeated_data_is_fitted_and_planned_with(tmp_path):
    rng = np.random.default_rng(3)
    truth = RepeatedLaw(LAW, 12.0, 6.0)
    rows = ["parameters,tokens,unique_tokens,loss"]
    for number in range(120):
        n, unique = np.exp(rng.uniform(17, 22)), np.exp(rng.uniform(20, 23))
        d = unique * (1 if number % 2 else rng.uniform(2, 40))
        rows.append(f"{n},{d},{unique},{float(truth.loss(n, d, unique))}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows))
    found = command.fit_repeated(str(path), {"law": vars(LAW)})
    assert (found["data_decay"], found["size_decay"]) == pytest.approx((12.0, 6.0), rel=0.02)
    assert found["error"]["nats"] < 1e-3
    planned = command.plan(found, parameters=3e8, tokens=2e10, unique_tokens=1e9)
    assert planned["loss"] == pytest.approx(float(truth.loss(3e8, 2e10, 1e9)), rel=1e-3)
    path.write_text("\n".join(row for row in rows if row.split(",")[1:2] == row.split(",")[2:3] or "loss" in row))
    with pytest.raises(DataError, match="none of 60 runs repeats data"):
        command.fit_repeated(str(path))


def test_a_prediction_for_repeated_tokens_counts_them_so(tmp_path):
    truth = RepeatedLaw(LAW, 12.0, 6.0)
    loss = float(truth.loss(3e8, 2e10, 1e9))
    (tmp_path / "runs.csv").write_text(f"parameters,tokens,unique_tokens,loss\n3e8,2e10,1e9,{loss}\n")
    fitted = {"law": vars(LAW), "data_decay": 12.0, "size_decay": 6.0}
    row = command.predicted_against_measured(fitted, str(tmp_path / "runs.csv"))[0]
    assert row["predicted"] == pytest.approx(loss)


def test_the_published_law_gives_its_published_losses():
    planned = command.plan(command.PUBLISHED["c4"], parameters=6.34e9, tokens=242e9, unique_tokens=25e9)
    assert planned["loss"] == pytest.approx(2.2256440889984477, abs=1e-12)


def test_what_is_open_in_a_law_is_told_with_its_plans(tmp_path):
    rows = [(n, d, float(LAW.loss(n, d))) for n in (1e7, 1e8) for d in np.geomspace(1e9, 1e11, 6)]
    (tmp_path / "runs.csv").write_text("N,D,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    found = command.fit_law(str(tmp_path / "runs.csv"), samples=5)
    assert found["undetermined"] == ["E", "A", "alpha"]
    assert command.plan(found, flops=1e20)["undetermined"] == ["E", "A", "alpha"]
    assert found["columns"] == {"parameters": "N", "tokens": "D", "loss": "loss"}
    assert found["error"]["largest"] < 1e-6


def test_a_plan_is_for_compute_or_for_size_and_length(fitted):
    with pytest.raises(RecipeError, match="either flops, or both"):
        command.plan(fitted, flops=1e20, parameters=1e9)
    rising = {"law": {"E": 2.0, "A": 1.0, "B": 1.0, "alpha": -0.1, "beta": 0.2}}
    with pytest.raises(DataError, match="no size is best for a budget"):
        command.plan(rising, flops=1e20)
    some = {**fitted, "samples": [*fitted["samples"], rising["law"]]}
    assert command.plan(some, flops=1e20)["intervals"] == command.plan(fitted, flops=1e20)["intervals"]


def test_budgets_of_whole_steps_are_the_same_budget(tmp_path):
    rows = ["N,D,loss"]
    for c, best in ((1e16, 1e6), (1e17, 4e6), (1e18, 1.6e7)):
        for n in best * np.array([0.25, 0.5, 1, 2, 4]):
            rows.append(f"{n},{round(c / 6 / n, -7)},{3 + 0.1 * np.log(n / best) ** 2}")  # steps of ten million tokens
    (tmp_path / "curves.csv").write_text("\n".join(rows))
    found = command.fit_isoflop(str(tmp_path / "curves.csv"))
    assert len(found["valleys"]) == 3
    assert found["sizes"]["exponent"] == pytest.approx(np.log10(4), abs=5e-3)
