from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError
from trainers.scaling.command import read_runs
from trainers.scaling.law import Law, bootstrap, fit, objective, without_worst

DATA = Path(__file__).parents[4] / "shared/data/scaling/epoch_chinchilla_svg_extracted_data.csv"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data/scaling is not there")


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


def test_runs_that_do_not_determine_the_law_are_told_as_such():
    assert Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37).determined
    assert not Law(E=3e-13, A=2.1, B=8.3, alpha=0.15, beta=0.05).determined
    assert not Law(E=1.8, A=480.0, B=2100.0, alpha=-0.3, beta=0.37).determined
