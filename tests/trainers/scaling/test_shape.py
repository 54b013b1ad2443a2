import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError
from trainers.model import ModelSettings
from trainers.scaling.shape import Shapes, shape_of, study, summary


@given(
    st.integers(300_000, 100_000_000), st.integers(1, 12), st.sampled_from([8, 16]), st.floats(2.0, 4.0)
)  # a wide FFN takes up what the width leaves over
def test_every_shape_has_the_number_of_weights_that_was_asked_for(parameters, layers, head_size, ratio):
    shape = shape_of(parameters, layers, head_size, ratio, tolerance=0.05)
    assert abs(shape.weights / parameters - 1) <= 0.05
    assert shape.hidden_size == shape.heads * head_size
    made = ModelSettings(
        layers=shape.layers, hidden_size=shape.hidden_size, heads=shape.heads, intermediate_size=shape.intermediate_size
    )
    made.check()
    assert made.parameters(vocab_size=0) == shape.weights + shape.hidden_size  # the last norm


def test_a_number_that_no_shape_has_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"2 layers with heads of 128 cannot have 100,000 weights .* has 1\d\d,\d{3}"):
        shape_of(100_000, 2, 128, 2.67, tolerance=0.02)


def test_an_ffn_that_is_far_from_its_ratio_is_refused():
    wanted = "4 layers with heads of 16 have 40,000 weights only with an FFN of 11.5 widths, where 2.67 were asked for"
    with pytest.raises(RecipeError, match=wanted):
        shape_of(40_000, 4, 16, 8 / 3, tolerance=0.02)


def test_a_study_holds_all_shapes_side_by_side(crew, packed, tmp_path):
    base = {"data": str(packed), "schedule": {"rate": 1e-2, "warmup": 2}, "batch_rows": 12, "micro_rows": 6}
    settings = Shapes(
        base={**base, "workers": 1, "device": "cpu"}, steps=10, parameters=20_000, layers=[1, 2], head_size=[8]
    )
    found = study(settings, str(tmp_path), crew=crew)
    assert [run["layers"] for run in found["runs"]] == [1, 2]
    assert all(abs(run["weights"] / 20_000 - 1) < 0.02 for run in found["runs"])
    ends = [run["test"] for run in found["runs"]]
    assert found["spread"] == pytest.approx(max(ends) / min(ends) - 1)
    for run in found["runs"]:
        report = json.loads((tmp_path / run["run"] / "report.json").read_text())
        assert run["train"] == report["losses"]["10"]
    assert "held-out loss" in (tmp_path / "report.html").read_text()
    assert study(settings, str(tmp_path)) == found  # read back
    assert len(summary(found)) == 4


def test_what_the_study_sets_itself_is_not_in_the_base():
    with pytest.raises(RecipeError, match="base sets steps"):
        Shapes(base={"steps": 3}, steps=10, parameters=20_000, layers=[1, 2]).check()
    with pytest.raises(RecipeError, match="one shape has nothing to be compared with"):
        Shapes(base={}, steps=10, parameters=20_000, layers=[1], head_size=[8]).check()
