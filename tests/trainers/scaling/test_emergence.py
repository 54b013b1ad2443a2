import json
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError, RecipeError
from trainers.scaling.emergence import own_runs, rise, side_by_side, study_files

DATA = Path(__file__).parents[4] / "shared/data/scaling"
BENCHMARKS = DATA / "obs_base_llm_benchmark_eval.csv"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data/scaling is not there")
SCALE = 10.0 ** np.arange(6, 14)


def test_even_progress_is_linear_and_not_sudden():
    found = rise(SCALE, np.linspace(0.1, 0.8, 8))
    assert found.linearity == pytest.approx(7)  # seven equal steps
    assert found.breakthroughness == pytest.approx(7)
    assert found.width == pytest.approx(0.8, abs=0.03)
    assert found.verdict() == "even"


def test_a_jump_is_found_where_it_is():
    found = rise(SCALE, [0.01, 0.02, 0.01, 0.02, 0.02, 0.6, 0.62, 0.63])
    assert found.verdict() == "sudden"
    assert 1e10 < found.at < 1e11


def test_getting_worse_is_no_rise():
    found = rise(SCALE, np.linspace(0.8, 0.1, 8))
    assert found.improvement == pytest.approx(-0.7)
    assert found.verdict() == "none"


def test_a_jump_of_accuracy_over_even_likelihoods_is_called_apparent():
    jump, even = [0, 0, 0, 0, 0, 1, 1, 1], np.linspace(-3, -1, 8)
    both = side_by_side(SCALE, {"a": jump, "b": jump, "c": np.linspace(0, 1, 8)}, {"a": even, "b": jump})
    assert [row["verdict"] for row in both] == ["apparent", "sudden", "even"]


def test_order_and_repeats_do_not_matter_and_few_scales_are_refused():
    values = np.array([0.01, 0.02, 0.01, 0.02, 0.02, 0.6, 0.62, 0.63])
    order = np.random.default_rng(0).permutation(8)
    assert rise(SCALE[order], values[order]) == rise(SCALE, values)  # to the last bit: sorted before anything is summed
    assert rise(np.tile(SCALE, 2), np.tile(values, 2)).at == rise(SCALE, values).at
    with pytest.raises(DataError, match="found 3"):
        rise([1, 2, 3, 3], [0, 0, 0, 1])


def test_scatter_between_families_is_no_rise_of_its_own():
    """Even progress of many models with noise larger than each step stays even; a late rise is found under it."""
    scale, rng = 10.0 ** np.linspace(6, 12, 60), np.random.default_rng(0)
    even = np.linspace(0.2, 0.8, 60) + rng.normal(0, 0.05, 60)
    late = 0.7 / (1 + np.exp(-(np.log10(scale) - 10) * 8)) + rng.normal(0, 0.02, 60)
    assert rise(scale, even).verdict() == "even"
    found = rise(scale, late)
    assert found.verdict() == "sudden"
    assert found.at == pytest.approx(1e10, rel=0.5)


def _logistic(x, width, centre):
    return 1 / (1 + np.exp(-(x - centre) * 2 * np.log(9) / width))


AXIS = np.linspace(0, 1, 12)
SUDDEN = {
    "step": 0.05 + 0.7 * (AXIS > 0.62),
    "step at the end": 0.05 + 0.7 * (AXIS > 0.95),
    "early step": 0.05 + 0.7 * (AXIS > 0.2),
    "steep": 0.05 + 0.7 * _logistic(AXIS, 0.15, 0.5),
}
NOT_SUDDEN = {
    "noise": np.full(12, 0.3),
    "even": 0.1 + 0.7 * AXIS,
    "slightly even": 0.2 + 0.15 * AXIS,
    "slow": 0.1 + 0.7 * _logistic(AXIS, 0.6, 0.5),
    "up and down": 0.1 + 0.6 * np.exp(-(((AXIS - 0.5) / 0.15) ** 2)),
    "down and up": 0.6 - 0.5 * np.exp(-(((AXIS - 0.5) / 0.25) ** 2)),
    "falling": 0.8 - 0.6 * AXIS,
}


@pytest.mark.parametrize("models", [12, 36])
@pytest.mark.parametrize("scatter", [0.02, 0.05])
def test_steps_are_found_and_nothing_else_is(models, scatter):
    """100 tables of each kind, 12 scales: at least 95 % of the sudden ones are found, and at most 5 % of the others."""
    rng = np.random.default_rng(0)
    scale = np.tile(10 ** (6 + 6 * AXIS), models // 12)

    def share(values):
        tables = (np.tile(values, models // 12) + rng.normal(0, scatter, models) for _ in range(100))
        return np.mean([rise(scale, one).verdict() == "sudden" for one in tables])

    found = {name: share(values) for name, values in SUDDEN.items()}
    alarms = {name: share(values) for name, values in NOT_SUDDEN.items()}
    assert {name: rate for name, rate in found.items() if rate < 0.95} == {}
    assert {name: rate for name, rate in alarms.items() if rate > 0.05} == {}


@pytest.mark.parametrize(("width", "centre"), [(0.1, 0.3), (0.4, 0.6), (0.8, 0.5)])
def test_place_and_width_of_a_logistic_rise_are_measured(width, centre):
    part = np.linspace(0, 1, 40)
    found = rise(10 ** (6 + 6 * part), 0.1 + 0.5 * _logistic(part, width, centre))
    heights = _logistic(fine := np.linspace(0, 1, 10_001), width, centre)
    reached = [fine[np.argmax(heights >= heights[0] + part * np.ptp(heights))] for part in (0.1, 0.5, 0.9)]
    assert found.width == pytest.approx(reached[2] - reached[0], abs=0.06)
    assert np.log10(found.at) == pytest.approx(6 + 6 * reached[1], abs=0.15)


def test_a_metric_in_percent_is_judged_as_one_in_shares():
    values = np.array([2, 2, 1, 2, 3, 5, 4, 6.0])
    shares = [side_by_side(SCALE, {"a": one}, {})[0]["verdict"] for one in (values, values / 100)]
    assert shares == ["none", "none"]
    assert side_by_side(SCALE, {"a": [1, 2, 1, 2, 2, 60, 62, 63]}, {})[0]["verdict"] == "sudden"


def test_a_smooth_metric_without_a_rise_makes_nothing_apparent():
    jump = [0, 0, 0, 0, 0, 1, 1, 1]
    assert side_by_side(SCALE, {"a": jump}, {"a": [-2.0] * 8})[0]["verdict"] == "sudden"


@needs_data
def test_big_bench_tasks_by_compute():
    """ObsScaling's models: two-digit arithmetic, and three-digit later, rise suddenly; no benchmark of theirs does."""
    found = study_files(str(DATA / "obs_base_llm_emergent_capability_eval.csv"), str(BENCHMARKS), None, (), ())
    assert found.scale == "FLOPs"
    rows = {str(row["task"]): row for row in found.rows}
    assert {"arithmetic_3ds_2_acc", "arithmetic_3da_2_acc"} <= {
        t for t, row in rows.items() if row["verdict"] == "sudden"
    }
    assert rows["arithmetic_2da_2_acc"]["at"] < rows["arithmetic_3da_2_acc"]["at"]
    assert all(1e20 < row["at"] < 1e25 for row in rows.values())
    plain = study_files(str(BENCHMARKS), None, None, ("MMLU", "HellaSwag", "TruthfulQA", "Winograd"), ())
    assert "sudden" not in [row["verdict"] for row in plain.rows]


def test_a_table_is_studied_with_its_smooth_columns(tmp_path):
    rows = ["model,flops,arith_accuracy,arith_log_likelihood,other"]
    for number, c in enumerate(SCALE):
        rows.append(f"m{number},{c},{float(number > 4)},{number / 10 - 3},{number / 10}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = study_files(str(tmp_path / "table.csv"), None, None, (), ())
    assert {row["task"]: row["verdict"] for row in found.rows} == {"arith_accuracy": "apparent", "other": "even"}
    assert found.smooth == {"arith_accuracy": "arith_log_likelihood"}
    with pytest.raises(DataError, match="model: numbers at fewer than 4 different values of flops"):
        study_files(str(tmp_path / "table.csv"), None, None, ("model",), ())
    with pytest.raises(RecipeError, match="did you mean 'flops'"):
        study_files(str(tmp_path / "table.csv"), None, "flop", (), ())


def test_the_axis_may_come_from_another_table(tmp_path):
    (tmp_path / "tasks.csv").write_text("model,task\n" + "".join(f"m{n},{float(n > 4)}\n" for n in range(8)))
    (tmp_path / "models.csv").write_text("model,flops,other\n" + "".join(f"m{n},{10.0**n},{n}\n" for n in range(8)))
    found = study_files(str(tmp_path / "tasks.csv"), str(tmp_path / "models.csv"), None, (), ())
    assert [row["task"] for row in found.rows] == ["task"]
    assert 1e4 < found.rows[0]["at"] < 1e5


def test_own_runs_are_read_from_their_metrics(tmp_path):
    for number in range(1, 6):
        lines = [{"step": 0, "parameters": 100 * number, "memory_expected_gib": 1.0}]
        lines += [{"step": s, "loss": 3.0, "tokens": 1000 * s} for s in (1, 2)]
        lines += [{"step": s, "validation": 3.0, "arith_accuracy": number / 10 * s / 2} for s in (1, 2)]
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = own_runs(str(tmp_path))
    assert [row["flops"] for row in rows] == [6 * 100 * n * 2000 for n in range(1, 6)]
    assert [row["arith_accuracy"] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert len(own_runs(str(tmp_path / "run-1"))) == 2
    assert [row["task"] for row in study_files(str(tmp_path), None, None, (), ()).rows] == ["arith_accuracy"]
