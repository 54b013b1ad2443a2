from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError
from trainers.scaling.command import read_runs
from trainers.scaling.law import COEFFICIENTS, Fit, Law, bootstrap, fit, objective, undetermined, without_worst

DATA = Path(__file__).parents[4] / "shared/data/scaling/epoch_chinchilla_svg_extracted_data.csv"
OVER = DATA.parent / "open_lm_overtraining_runs.jsonl"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data/scaling is not there")

needs_over = pytest.mark.skipif(not OVER.exists(), reason="../shared/data/scaling is not there")


@pytest.fixture(scope="module")
def chinchilla():
    runs = read_runs(str(DATA))
    return without_worst(runs.parameters, runs.tokens, runs.loss, 5)


@needs_data
def test_chinchillas_runs_give_the_published_refit(chinchilla):
    found = fit(*chinchilla)
    assert found.runs == 240
    assert found.objective == pytest.approx(0.00101827402, rel=1e-7)
    assert pytest.approx(1.8172, abs=2e-4) == found.law.E
    assert pytest.approx(477.8, abs=0.2) == found.law.A
    assert pytest.approx(2143, abs=2) == found.law.B
    assert found.law.alpha == pytest.approx(0.3473, abs=1e-4)
    assert found.law.beta == pytest.approx(0.3672, abs=1e-4)
    assert found.law.exponent == pytest.approx(0.5139, abs=2e-4)


@needs_data
def test_bootstrap_intervals_are_the_published_ones(chinchilla):
    found = fit(*chinchilla, best_starts=5)
    laws = bootstrap(*chinchilla, found, samples=400)
    published = {  # Besiroglu et al. 2024: standard error, 95 % interval
        "E": (0.0257, 1.769, 1.871), "A": (124.52, 285.2, 743.6), "B": (1293.28, 1042.4, 5810.3),
        "alpha": (0.0154, 0.317, 0.373), "beta": (0.0206, 0.331, 0.415),
    }  # fmt: skip
    for name, (error, low, high) in published.items():
        values = [getattr(law, name) for law in laws]
        assert np.std(values) == pytest.approx(error, rel=0.25), name
        got = found.interval(laws, name)
        assert got == pytest.approx((low, high), abs=error * 0.8), name


@needs_data
def test_chinchillas_runs_leave_no_coefficient_open(chinchilla):
    assert undetermined(Law(E=1.8172, A=477.83, B=2143.4, alpha=0.34731, beta=0.36717), *chinchilla) == []


@needs_data
def test_published_coefficients_have_their_published_objective(chinchilla):
    logs = [np.log(values) for values in chinchilla]
    rounded = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    unrounded = Law(E=np.exp(0.5267228), A=np.exp(6.0073404), B=np.exp(6.0179186), alpha=0.33917084, beta=0.2849083)
    assert objective(rounded.logs(), *logs, 1e-3)[0] == pytest.approx(0.0041210, rel=1e-5)
    assert objective(unrounded.logs(), *logs, 1e-3)[0] == pytest.approx(0.00123116, rel=1e-5)


def test_a_law_is_found_again_from_its_own_losses():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(14, 23, 80)), np.exp(rng.uniform(18, 26, 80))
    law = Law(E=1.7, A=400.0, B=1500.0, alpha=0.33, beta=0.36)
    found = fit(n, d, np.asarray(law.loss(n, d)))
    assert found.law.logs() == pytest.approx(law.logs(), rel=1e-3)


def test_the_gradient_of_the_objective_is_its_slope():
    rng = np.random.default_rng(1)
    logs = [rng.uniform(15, 20, 30), rng.uniform(20, 24, 30), rng.uniform(0.5, 1.5, 30)]
    x = np.array([0.3, 5.0, 6.0, 0.3, 0.35])
    _, gradient = objective(x, *logs, 1e-3)
    for i in range(5):
        step = np.zeros(5)
        step[i] = 1e-6
        slope = (objective(x + step, *logs, 1e-3)[0] - objective(x - step, *logs, 1e-3)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_the_optimum_is_the_lowest_loss_of_its_budget():
    law = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    n, d, loss = law.optimum(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    others = np.exp(np.linspace(np.log(n) - 3, np.log(n) + 3, 200))
    assert (np.asarray(law.loss(others, 1e21 / 6 / others)) >= loss - 1e-12).all()
    assert law.parameters_for(d) == pytest.approx(n)


def test_too_few_runs_are_refused():
    with pytest.raises(DataError, match="at least 6 runs"):
        fit(np.ones(4), np.ones(4), np.ones(4))


GRID = np.array([(n, d) for n in np.geomspace(1e7, 1e9, 5) for d in np.geomspace(5e8, 5e10, 5)]).T
TRUTH = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


@pytest.mark.parametrize(
    ("keep", "open_ones"),
    [
        (lambda n, d: n > 0, []),
        (lambda n, d: np.isin(n, [1e7, 1e8]), ["E", "A", "alpha"]),  # two sizes: three unknowns for two numbers
        (lambda n, d: np.isin(d, [5e8, 5e9]), ["E", "B", "beta"]),
        (lambda n, d: np.isclose(d, 50 * n), ["A", "alpha"]),  # one falls as the other does
    ],
)
def test_what_the_runs_leave_open_is_named(keep, open_ones):
    n, d = GRID[:, keep(*GRID)]
    n, d = (np.tile(values, 2) for values in (n, d))  # 6 runs or more
    loss = np.asarray(TRUTH.loss(n, d))
    assert undetermined(fit(n, d, loss, best_starts=10).law, n, d, loss) == open_ones


@pytest.mark.parametrize(
    "loss",
    [
        np.exp(np.random.default_rng(0).normal(1, 0.1, 25)),
        np.full(25, 3.0),
        2 + 0.1 * np.log(GRID[0] * GRID[1]),
        1e30 * np.asarray(TRUTH.loss(*GRID)),
    ],
    ids=["noise", "constant", "rising", "huge"],
)
def test_losses_that_follow_no_law_give_none(loss):
    found = fit(*GRID, loss, best_starts=10).law
    assert {"E", "alpha", "beta"} <= set(undetermined(found, *GRID, loss))
    assert all(np.isfinite(law.A) for law in bootstrap(*GRID, loss, Fit(found, 0.0, 25), samples=3))
    with pytest.raises(DataError, match="no size is best for a budget"):
        Law(E=1.8, A=480.0, B=2100.0, alpha=-0.3, beta=0.37).optimum(1e21)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    n, d = GRID
    hits = 0
    for seed in range(6):
        loss = np.asarray(TRUTH.loss(n, d)) * np.exp(np.random.default_rng(seed).normal(0, 0.003, 25))
        found = fit(n, d, loss, best_starts=5)
        laws = bootstrap(n, d, loss, found, samples=40, seed=seed)
        for name in COEFFICIENTS:
            low, high = found.interval(laws, name)
            hits += low <= getattr(TRUTH, name) <= high
    assert 0.8 <= hits / 30 <= 1


def test_tied_exponents_are_equal_and_found_again():
    law = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.35)
    loss = np.asarray(law.loss(*GRID))
    found = fit(*GRID, loss, best_starts=10, tied=True)
    assert found.law.alpha == found.law.beta
    assert found.law.logs() == pytest.approx(law.logs(), rel=1e-3)
    few = np.isin(GRID[0], [1e7, 1e8])  # with one exponent, two sizes are enough
    n, d = GRID[:, few]
    assert undetermined(fit(n, d, loss[few], tied=True).law, n, d, loss[few], tied=True) == []


@needs_over
def test_small_runs_predict_overtrained_ones_of_ten_times_their_size():
    """Gadre et al. 2024: up to 412M parameters predict 1.4B ones on 20 tokens per parameter."""
    for data in ("c4_original", "rpj", "rw_original"):
        runs = read_runs(str(OVER), [f"dataset={data}", "chinchilla_multiplier>=1"], {"loss": "losses.1.loss"})
        small = runs.parameters < 1e9
        large = (runs.parameters > 1e9) & (runs.parameters < 2e9)
        law = fit(runs.parameters[small], runs.tokens[small], runs.loss[small], tied=True).law
        said = np.asarray(law.loss(runs.parameters[large], runs.tokens[large]))
        assert said == pytest.approx(runs.loss[large], rel=0.02)
