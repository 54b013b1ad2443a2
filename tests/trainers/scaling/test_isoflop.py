import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError
from trainers.scaling.isoflop import best_sizes, power_law, valley

DATA = Path(__file__).parents[4] / "shared/data/scaling"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data/scaling is not there")


@needs_data
@pytest.mark.parametrize(
    ("file", "setup", "published"),
    [
        ("formll_isoflop_refinedweb", ("base", "long", "kaplan", "kaplan", "train"), 0.835),
        ("formll_isoflop_refinedweb", ("base", "long", "kaplan", "standard", "val"), 0.706),
        ("formll_isoflop_refinedweb", ("base", "short", "kaplan", "standard", "val"), 0.602),
        ("formll_isoflop_refinedweb", ("base", "short", "chinchilla", "standard", "val"), 0.571),
        ("formll_isoflop_refinedweb", ("tuned", "short", "const", "standard", "val"), 0.497),
        ("formll_isoflop_kaplan_tuned_hparams", ("tuned", "long", "const", "kaplan", "train"), 0.711),
    ],
)
def test_the_way_from_kaplan_to_chinchilla(file, setup, published):
    curves = defaultdict(list)
    with (DATA / f"{file}.csv").open() as source:
        for row in csv.DictReader(source):
            if tuple(row[key] for key in ("hparams", "warmup", "decay", "param_count", "loss_split")) == setup:
                curves[float(row["flops"])].append((float(row["params_N"]), float(row["loss"])))
    law, _ = best_sizes(curves)
    assert law.exponent == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("method", ["akima", "parabola"])
def test_a_known_valley_is_found(method):
    sizes = np.exp(np.linspace(10, 16, 9))
    loss = np.exp(0.5 + 0.01 * (np.log(sizes) - 13.2) ** 2)
    found = valley(1e18, sizes, loss, method)
    assert np.log(found.parameters) == pytest.approx(13.2, abs=0.05)


@pytest.mark.parametrize("method", ["akima", "parabola"])
def test_a_minimum_at_the_edge_is_no_minimum(method):
    sizes = np.exp(np.linspace(10, 16, 9))
    assert valley(1e18, sizes, 5 - 0.1 * np.log(sizes), method) is None
    with pytest.raises(DataError, match="0 of 2 IsoFLOP curves"):
        best_sizes({c: [(n, 5 - 0.1 * np.log(n)) for n in sizes] for c in (1e18, 2e18)}, method)


def test_a_power_law_is_found_again():
    x = np.array([1e3, 1e4, 1e6])
    law = power_law(x, 7.0 * x**-0.076)
    assert (law.coefficient, law.exponent, law.r2) == pytest.approx((7.0, -0.076, 1.0))
    assert law.at(1e5) == pytest.approx(7.0 * 1e5**-0.076)


def test_the_interval_of_an_exponent_holds_it_as_often_as_it_says():
    rng, x = np.random.default_rng(0), np.geomspace(1e3, 1e9, 6)
    spreads = [power_law(x, 7.0 * x**-0.08 * np.exp(rng.normal(0, 0.02, 6))).interval for _ in range(400)]
    assert 0.92 <= np.mean([low <= -0.08 <= high for low, high in spreads]) <= 0.98
    assert power_law([1, 2], [3, 2]).interval is None
