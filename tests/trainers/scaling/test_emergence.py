import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError, RecipeError
from trainers.scaling.emergence import own_runs, rise, rising, side_by_side, study_files

SCALE = 10.0 ** np.arange(6, 14)


def test_even_progress_is_linear_and_not_sudden():
    found = rise(SCALE, np.linspace(0.1, 0.8, 8))
    assert found.linearity == pytest.approx(7)  # seven equal steps
    assert found.breakthroughness == pytest.approx(7)
    assert found.width == pytest.approx(0.8)
    assert not found.sudden


def test_a_jump_is_found_where_it_is():
    found = rise(SCALE, [0.01, 0.02, 0.01, 0.02, 0.02, 0.6, 0.62, 0.63])
    assert found.sudden
    assert found.at == 1e11


def test_getting_worse_is_no_rise():
    found = rise(SCALE, np.linspace(0.8, 0.1, 8))
    assert found.improvement == pytest.approx(-0.7)
    assert not found.sudden


def test_a_jump_of_accuracy_over_even_likelihoods_is_called_apparent():
    jump, even = [0, 0, 0, 0, 0, 1, 1, 1], np.linspace(-3, -1, 8)
    both = side_by_side(SCALE, {"a": jump, "b": jump, "c": np.linspace(0, 1, 8)}, {"a": even, "b": jump})
    assert [(row["sudden"], row["apparent"]) for row in both] == [(True, True), (True, False), (False, False)]


def test_order_and_repeats_do_not_matter_and_few_scales_are_refused():
    values = np.array([0.01, 0.02, 0.01, 0.02, 0.02, 0.6, 0.62, 0.63])
    order = np.random.default_rng(0).permutation(8)
    assert rise(SCALE[order], values[order]) == rise(SCALE, values)
    assert rise(np.tile(SCALE, 2), np.tile(values, 2)) == rise(SCALE, values)
    with pytest.raises(DataError, match="found 3"):
        rise([1, 2, 3, 3], [0, 0, 0, 1])


def test_scatter_between_families_is_no_rise_of_its_own():
    """Even progress of many models with noise larger than each step stays even; a late rise is found under it."""
    scale, rng = 10.0 ** np.linspace(6, 12, 60), np.random.default_rng(0)
    even = np.linspace(0.2, 0.8, 60) + rng.normal(0, 0.05, 60)
    late = 0.7 / (1 + np.exp(-(np.log10(scale) - 10) * 8)) + rng.normal(0, 0.02, 60)
    assert not rise(scale, even).sudden
    found = rise(scale, late)
    assert found.sudden
    assert found.at == pytest.approx(1e10, rel=0.5)


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=30))
def test_the_rising_curve_never_falls_and_keeps_the_mean(values):
    weights = np.arange(1, len(values) + 1)
    curve = rising(np.array(values), weights)
    assert (np.diff(curve) >= 0).all()
    assert (curve * weights).sum() == pytest.approx((np.array(values) * weights).sum(), abs=1e-6)


def test_a_table_is_studied_with_its_smooth_columns(tmp_path):
    rows = ["model,flops,arith_accuracy,arith_log_likelihood,other"]
    for number, c in enumerate(SCALE):
        rows.append(f"m{number},{c},{float(number > 4)},{number / 10 - 3},{number / 10}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = study_files(str(tmp_path / "table.csv"), None, None, (), ())
    assert {row["task"]: (row["sudden"], row["apparent"]) for row in found.rows} == {
        "arith_accuracy": (True, True), "other": (False, False),
    }  # fmt: skip
    assert found.smooth == {"arith_accuracy": "arith_log_likelihood"}
    with pytest.raises(RecipeError, match="did you mean 'flops'"):
        study_files(str(tmp_path / "table.csv"), None, "flop", (), ())


def test_the_axis_may_come_from_another_table(tmp_path):
    (tmp_path / "tasks.csv").write_text("model,task\n" + "".join(f"m{n},{float(n > 4)}\n" for n in range(8)))
    (tmp_path / "models.csv").write_text("model,flops,other\n" + "".join(f"m{n},{10.0**n},{n}\n" for n in range(8)))
    found = study_files(str(tmp_path / "tasks.csv"), str(tmp_path / "models.csv"), None, (), ())
    assert [row["task"] for row in found.rows] == ["task"]
    assert found.rows[0]["at"] == 1e5


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
