import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError
from cluster.settings import make
from trainers.schedule import Schedule


def test_wsd_warms_up_stays_and_decays_to_its_end():
    schedule = Schedule(rate=1.0, warmup=4, decay=0.5, final=0.1)
    rates = [schedule.at(step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:10] == [1.0] * 6
    assert schedule.corner(20) == 10
    assert rates[10] == pytest.approx(1 - 0.9 / 10)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - 0.5**0.5), ("cosine", 0.5)])
def test_decay_shapes_at_half_way(shape, half):
    schedule = Schedule(rate=2.0, warmup=0, decay=10, decay_shape=shape)
    assert schedule.at(14, 20) == pytest.approx(2.0 * half)


def test_inverse_sqrt_joins_the_warmup():
    schedule = Schedule(shape="inverse_sqrt", rate=1.0, warmup=100)
    assert schedule.at(99, 1000) == pytest.approx(1.0)
    assert schedule.at(399, 1000) == pytest.approx(0.5)


@given(
    st.sampled_from(["wsd", "cosine", "linear", "inverse_sqrt", "constant"]),
    st.sampled_from(["linear", "sqrt", "cosine"]),
    st.integers(0, 20),
    st.integers(20, 60),
)
def test_after_the_warmup_no_schedule_rises(shape, decay_shape, warmup, steps):
    schedule = Schedule(shape=shape, decay_shape=decay_shape, rate=1.0, warmup=float(warmup) if warmup else 0.0)
    rates = [schedule.at(step, steps) for step in range(steps)]
    after = rates[schedule.warmup_steps(steps) :]
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(RecipeError, match="warmup of 50 steps in a run of 20"):
        Schedule(warmup=50).check(20)


def test_a_decay_that_the_warmup_leaves_no_room_for_is_refused():
    Schedule(warmup=40, decay=20).check(60)
    with pytest.raises(RecipeError, match="warmup of 40 and decay of 30 steps in a run of 60"):
        Schedule(warmup=40, decay=30).check(60)
    Schedule(shape="cosine", warmup=40, decay=30).check(60)


def test_a_range_rises_evenly_in_the_logarithm():
    schedule = Schedule(shape="range", rate=1.0, warmup=0.5)
    rates = [schedule.at(step, 31) for step in range(31)]
    assert (rates[0], rates[10], rates[20], rates[30]) == pytest.approx((1e-3, 1e-2, 1e-1, 1.0))
    assert schedule.corner(31) == 31


FINAL, PEAK, WARMUP, DECAY, STEPS = 0.1, 3e-3, 50, 200, 1000
FALLS = {
    "linear": lambda x: 1 - x,
    "sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
}


def _falls(fall, step, first):
    return PEAK * (FINAL + (1 - FINAL) * fall((step + 1 - first) / (STEPS - first)))


@pytest.mark.parametrize("decay_shape", FALLS)
def test_every_rate_of_a_wsd_run_is_its_formula(decay_shape):
    schedule = Schedule(rate=PEAK, warmup=WARMUP, decay=DECAY, decay_shape=decay_shape, final=FINAL)
    for step in range(STEPS):
        expected = PEAK * min(1.0, (step + 1) / WARMUP)
        if step >= STEPS - DECAY:
            expected = _falls(FALLS[decay_shape], step, STEPS - DECAY)
        assert schedule.at(step, STEPS) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "after"),
    [
        ("cosine", lambda step: _falls(FALLS["cosine"], step, WARMUP)),
        ("linear", lambda step: _falls(FALLS["linear"], step, WARMUP)),
        ("inverse_sqrt", lambda step: PEAK * math.sqrt(WARMUP / (step + 1))),
        ("constant", lambda step: PEAK),
    ],
)
def test_every_rate_of_another_shape_is_its_formula(shape, after):
    schedule = Schedule(shape=shape, rate=PEAK, warmup=WARMUP, final=FINAL)
    for step in range(STEPS):
        expected = PEAK * (step + 1) / WARMUP if step < WARMUP else after(step)
        assert schedule.at(step, STEPS) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("field", ["warmup", "decay"])
def test_a_part_of_a_step_is_refused(field):
    with pytest.raises(RecipeError, match=f"schedule.*{field}.*whole number of steps; found 2.5"):
        make(Schedule, {field: 2.5}, "schedule")
    assert make(Schedule, {field: 20.0}, "schedule")
