"""The variance of a gradient: the sketch is that of the exact gradient, however the answers are cut."""

import pytest
import torch

from trainers.batch import IGNORE
from trainers.scatter import Scatter, _projection, sketched_scores


@pytest.fixture
def answers():
    """hidden [answers, time, 6], weight [40, 6], targets [answers, time] with prompts and padding."""
    make = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn((64, 9, 6), generator=make), torch.randn((40, 6), generator=make)
    targets = torch.randint(0, 40, (64, 9), generator=make)
    targets[:, 0] = IGNORE
    targets[::3, 6:] = IGNORE
    return hidden, weight, targets


def test_a_sketched_score_is_the_projected_gradient_of_the_log_probability(answers):
    hidden, weight, targets = answers
    got = sketched_scores(hidden.flatten(0, 1), weight, targets.flatten(), chunk=50).unflatten(0, targets.shape)
    assert not got[targets == IGNORE].any()
    for i, t in ((1, 1), (3, 5), (4, 8)):
        w = weight.clone().requires_grad_()
        torch.log_softmax(w @ hidden[i, t], -1)[targets[i, t]].backward()
        expected = _projection(40, 0).T @ w.grad @ _projection(6, 1)
        torch.testing.assert_close(got[i, t], expected.flatten(), rtol=1e-4, atol=1e-5)


def test_the_variance_is_near_the_exact_one_and_does_not_depend_on_the_cut(answers):
    hidden, weight, targets = answers
    make = torch.Generator().manual_seed(1)
    psi = torch.randn(targets.shape, generator=make) * (targets != IGNORE)
    psis = {"one": psi, "twice": 2 * psi, "shifted": psi + 3 * (targets != IGNORE)}
    scores = sketched_scores(hidden.flatten(0, 1), weight, targets.flatten()).unflatten(0, targets.shape)
    whole, parts = Scatter(list(psis)), [Scatter(list(psis)), Scatter(list(psis))]
    whole.add(psis, scores)
    for at, rows in enumerate((range(10), range(10, 40), range(40, 64))):
        some = list(rows)
        parts[at % 2].add({name: x[some] for name, x in psis.items()}, scores[some])
    summed = [a + b for a, b in zip(parts[0].sums(), parts[1].sums(), strict=True)]
    found = whole.variances()
    assert parts[0].variances(summed) == pytest.approx(found)
    assert found["twice"] == pytest.approx(4 * found["one"])
    error = torch.nn.functional.one_hot(targets.clamp(min=0), 40) - torch.softmax(hidden @ weight.T, -1)
    for name, of in psis.items():
        exact = torch.einsum("at,atv,ath->avh", of, error, hidden).flatten(1)
        assert found[name] == pytest.approx(float(exact.var(0).sum()), rel=0.2)
