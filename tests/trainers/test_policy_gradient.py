"""Every formula against its own naive restatement, and against problems whose answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from trainers import policy_gradient as pg

GAMMA, LAM = 0.97, 0.9


def ragged(seed, rows=6, width=17, holes=True):
    """Random rewards, values [rows, width] with junk at masked places; rows of unequal length, with holes."""
    make = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0 if seed % 3 == 0 else 1, width + 1, (rows,), generator=make)
    mask = torch.arange(width)[None] < lengths[:, None]
    if holes:
        mask &= torch.rand(rows, width, generator=make) < 0.7
    draw = lambda: torch.randn(rows, width, generator=make, dtype=torch.float64)  # noqa: E731
    return draw(), draw(), mask


def row_by_row(formula, mask, *tensors):
    """`formula(lists…) -> list` on each row with the masked tokens deleted, put back at their places."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for i, here in enumerate(mask):
        out[i, here] = torch.tensor(formula(*[t[i, here].tolist() for t in tensors]), dtype=torch.float64)
    return out


def _gae(r, v):
    deltas = [r[t] + (GAMMA * v[t + 1] if t + 1 < len(r) else 0.0) - v[t] for t in range(len(r))]
    return [sum((GAMMA * LAM) ** k * deltas[t + k] for k in range(len(r) - t)) for t in range(len(r))]


def _q(r, v, n):
    return [
        sum(GAMMA**k * r[t + k] for k in range(min(n, len(r) - t))) + (GAMMA**n * v[t + n] if t + n < len(r) else 0.0)
        for t in range(len(r))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_psi_is_its_formula_with_the_masked_tokens_deleted(seed):
    r, v, mask = ragged(seed)
    close = lambda got, formula, *t: torch.testing.assert_close(got, row_by_row(formula, mask, *t), rtol=0, atol=1e-9)  # noqa: E731
    close(pg.trajectory_return(r, mask, GAMMA), lambda r: [sum(GAMMA**k * x for k, x in enumerate(r))] * len(r), r)
    close(pg.reward_to_go(r, mask, GAMMA), lambda r: _q(r, r, len(r)), r)
    close(pg.with_baseline(r, v, mask), lambda r, v: [a - b for a, b in zip(r, v, strict=True)], r, v)
    for n in (1, 2, 5, 99):
        close(pg.action_value(r, v, mask, GAMMA, n), lambda r, v, n=n: _q(r, v, n), r, v)
        close(
            pg.advantage(r, v, mask, GAMMA, n),
            lambda r, v, n=n: [q - b for q, b in zip(_q(r, v, n), v, strict=True)],
            r,
            v,
        )
    close(pg.td_residual(r, v, mask, GAMMA), lambda r, v: [q - b for q, b in zip(_q(r, v, 1), v, strict=True)], r, v)
    close(pg.gae(r, v, mask, GAMMA, LAM), _gae, r, v)
    close(pg.td_target(r, v, mask, GAMMA), lambda r, v: _q(r, v, 1), r, v)
    close(
        pg.gae_target(pg.gae(r, v, mask, GAMMA, LAM), v, mask),
        lambda r, v: [a + b for a, b in zip(_gae(r, v), v, strict=True)],
        r,
        v,
    )


@given(st.integers(0, 10**6), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_a_tool_output_between_two_turns_changes_no_advantage(seed, at):
    r, v, mask = ragged(seed, holes=False)
    hole = torch.full((len(r), 3), 7.0, dtype=torch.float64)
    put = lambda x, y: torch.cat([x[:, :at], y, x[:, at:]], 1)  # noqa: E731
    holed = pg.gae(put(r, hole), put(v, -hole), put(mask, torch.zeros(len(r), 3, dtype=torch.bool)), GAMMA, LAM)
    plain = pg.gae(r, v, mask, GAMMA, LAM)
    torch.testing.assert_close(torch.cat([holed[:, :at], holed[:, at + 3 :]], 1), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 4, 5])
def test_a_whole_ppo_or_grpo_update_with_holes_is_that_of_rows_without_the_masked_tokens(seed):
    """Rewards, advantages, whitening, both losses and their gradients: masked tokens might as well not be there."""
    make = torch.Generator().manual_seed(seed)
    _, _, mask = ragged(seed)
    mask[:, 0] = True
    new, old, sampler, reference, values, old_values = torch.randn((6, *mask.shape), generator=make).double().unbind(0)
    scores = torch.randn(len(mask), generator=make).double()

    def update(mask, new, old, sampler, reference, values, old_values):
        new, values = new.clone().requires_grad_(), values.clone().requires_grad_()
        rewards = pg.kl_rewards(scores, pg.kl_estimate(old, reference, "k1"), mask, 0.1)
        advantages = pg.gae(rewards, old_values, mask, GAMMA, LAM)
        returns = pg.gae_target(advantages, old_values, mask)
        group = pg.group_relative(rewards.sum(-1), 3)[:, None] * mask
        total = pg.value_loss(values, returns, mask, old_values, 0.2)
        for psi in (pg.whiten(advantages, mask), pg.reinforce_pp(rewards, mask, gamma=GAMMA), group):
            terms, _ = pg.ppo_terms(new, old, psi, dual_clip=3.0)
            total = total + (terms * pg.importance_weights(old, sampler, 2.0) * mask).sum()
        total.backward()
        return float(total), new.grad[mask], values.grad[mask]

    tensors = (new, old, sampler, reference, values, old_values)
    width = int(mask.sum(-1).max())
    order = torch.argsort(~mask, dim=-1, stable=True)[:, :width]
    holed = update(mask, *tensors)
    deleted = update(mask.gather(1, order), *(x.gather(1, order) for x in tensors))
    assert holed[0] == pytest.approx(deleted[0], abs=1e-9)
    for with_holes, without in zip(holed[1:], deleted[1:], strict=True):
        torch.testing.assert_close(with_holes, without, rtol=0, atol=1e-9)


def test_the_ends_of_gae_are_the_td_residual_and_the_baselined_reward_to_go():
    r, v, mask = ragged(4)
    torch.testing.assert_close(pg.gae(r, v, mask, GAMMA, 0.0), pg.td_residual(r, v, mask, GAMMA))
    whole = pg.with_baseline(pg.reward_to_go(r, mask, GAMMA), v, mask)
    torch.testing.assert_close(pg.gae(r, v, mask, GAMMA, 1.0), whole)


@pytest.mark.parametrize("seed", range(4))
def test_gae_on_unbroken_rows_is_the_padded_recursion_of_openrlhf(seed):
    r, v, mask = ragged(seed, holes=False)
    r0, v0, last, out = r * mask, v * mask, 0.0, []
    for t in reversed(range(r.shape[1])):
        following = v0[:, t + 1] if t + 1 < r.shape[1] else 0.0
        last = r0[:, t] + GAMMA * following - v0[:, t] + GAMMA * LAM * last
        out.append(last)
    expected = torch.stack(out[::-1], 1) * mask
    torch.testing.assert_close(pg.gae(r, v, mask, GAMMA, LAM), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_whitening_is_the_published_one_both_ways_and_over_ranks(seed):
    x, _, mask = ragged(seed)
    kept = x[mask]
    for unbiased in (True, False):
        expected = (x - kept.mean()) / torch.sqrt(kept.var(unbiased=unbiased) + 1e-8) * mask
        torch.testing.assert_close(pg.whiten(x, mask, unbiased=unbiased), expected, rtol=0, atol=1e-6)
        halves = [pg.moments(x[part], mask[part]) for part in (slice(0, 2), slice(2, None))]
        summed = [sum(values) for values in zip(*halves, strict=True)]
        split = [pg.whiten(x[p], mask[p], unbiased=unbiased, over=summed) for p in (slice(0, 2), slice(2, 6))]
        torch.testing.assert_close(torch.cat(split), expected, rtol=0, atol=1e-6)
    n = int(mask.sum())
    ratio = pg.whiten(x, mask, unbiased=False)[mask] / pg.whiten(x, mask, unbiased=True)[mask]
    torch.testing.assert_close(ratio, torch.full((n,), math.sqrt(n / (n - 1)), dtype=torch.float64), rtol=1e-6, atol=0)
    kept_mean = pg.whiten(x, mask, keep_mean=True)[mask].mean()
    torch.testing.assert_close(kept_mean, kept.mean())


def test_kl_estimates_are_schulmans_and_k1_and_k3_are_unbiased():
    torch.manual_seed(0)
    p, q = ((torch.randn(50).double() / 2).log_softmax(0) for _ in range(2))
    exact = float((p.exp() * (p - q)).sum())
    x = p - q
    torch.testing.assert_close(pg.kl_estimate(p, q, "k1"), x)
    torch.testing.assert_close(pg.kl_estimate(p, q, "k2"), x * x / 2)
    torch.testing.assert_close(pg.kl_estimate(p, q, "k3"), torch.exp(-x) - 1 + x)
    for kind in ("k1", "k3"):
        assert float((p.exp() * pg.kl_estimate(p, q, kind)).sum()) == pytest.approx(exact, abs=1e-9)
    assert (pg.kl_estimate(p, q, "k3") >= 0).all()
    assert float(pg.kl_estimate(torch.tensor(-100.0), torch.tensor(0.0), "k3")) == 10.0


def test_the_score_comes_at_the_last_token_and_never_on_padding():
    _, kl, mask = ragged(3)
    mask[2] = False
    scores = torch.arange(1.0, 7.0, dtype=torch.float64)
    got = pg.kl_rewards(scores, kl, mask, 0.1)
    expected = torch.zeros_like(kl)
    for i in range(6):
        places = mask[i].nonzero().flatten().tolist()
        for t in places:
            expected[i, t] = -0.1 * kl[i, t] + (scores[i] if t == places[-1] else 0.0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dual", [None, 3.0])
def test_ppo_losses_are_the_published_ones(dual):
    torch.manual_seed(1)
    new, old, a = torch.randn(3, 4, 9).double().unbind(0)
    new = old + 2 * (new - old)
    got, held = pg.ppo_terms(new, old, a, clip_low=0.2, clip_high=0.28, dual_clip=dual)
    for index in torch.cartesian_prod(torch.arange(4), torch.arange(9)).tolist():
        lp, lo, adv = (float(t[tuple(index)]) for t in (new, old, a))
        ratio = math.exp(max(-20.0, min(20.0, lp - lo)))
        clipped = max(0.8, min(1.28, ratio))
        loss = -min(ratio * adv, clipped * adv)
        assert bool(held[tuple(index)]) == (clipped * adv < ratio * adv)
        if dual and adv < 0:
            loss = -max(min(ratio * adv, clipped * adv), dual * adv)
        assert float(got[tuple(index)]) == pytest.approx(loss, abs=1e-9)


def test_a_clipped_token_has_no_gradient_and_the_first_update_is_the_policy_gradient():
    old = torch.zeros(1, 3, dtype=torch.float64)
    a, mask = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    new = torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    pg.ppo_terms(new, old, a)[0].sum().backward()
    assert new.grad.tolist() == [[0.0, 0.0, -2.0]]
    same = old.clone().requires_grad_()
    pg.ppo_terms(same, old, a)[0].sum().backward()
    plain = old.clone().requires_grad_()
    pg.policy_gradient_loss(plain, a, mask).backward()
    torch.testing.assert_close(same.grad, plain.grad)


def test_the_value_loss_takes_the_worse_of_free_and_clipped():
    v, old, target = (torch.tensor([[x]]) for x in (1.0, 0.0, 3.0))
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert float(pg.value_loss(v, target, mask)) == pytest.approx(2.0)
    assert float(pg.value_loss(v, target, mask, old, clip=0.2)) == pytest.approx(0.5 * 2.8**2)
    assert float(pg.value_loss(v, target, ~mask, old, clip=0.2)) == 0.0
    with pytest.raises(DataError, match="values from before"):
        pg.value_loss(v, target, mask, clip=0.2)


@pytest.mark.parametrize("seed", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_of_ragged_rows_is_the_published_one(seed, clip):
    """½ Σ max((V − R)², (V_old + clip(V − V_old) − R)²): OpenRLHF, verl and TRL before they divide by a count."""
    v, old, mask = ragged(seed)
    target = torch.randn(v.shape, generator=torch.Generator().manual_seed(seed + 99), dtype=torch.float64)
    expected = 0.0
    for i, t in mask.nonzero().tolist():
        value, before, goal = float(v[i, t]), float(old[i, t]), float(target[i, t])
        near = before + max(-0.2, min(0.2, value - before)) if clip else value
        expected += 0.5 * max((value - goal) ** 2, (near - goal) ** 2)
    assert float(pg.value_loss(v, target, mask, old, clip)) == pytest.approx(expected, abs=1e-6)


def test_group_advantages_are_the_published_ones():
    torch.manual_seed(2)
    scores = torch.randn(12).double()
    for i in range(12):
        peers = [float(x) for x in scores[i // 4 * 4 : i // 4 * 4 + 4]]
        mean = sum(peers) / 4
        std = math.sqrt(sum((x - mean) ** 2 for x in peers) / 3)
        others = [x for j, x in enumerate(peers) if j != i % 4]
        assert float(pg.group_relative(scores, 4)[i]) == pytest.approx((float(scores[i]) - mean) / (std + 1e-6))
        assert float(pg.group_relative(scores, 4, scale=False)[i]) == pytest.approx(float(scores[i]) - mean)
        assert float(pg.leave_one_out(scores, 4)[i]) == pytest.approx(float(scores[i]) - sum(others) / 3)
    torch.testing.assert_close(pg.group_relative(scores, 1), scores / (1 + 1e-6))
    assert pg.group_relative(torch.ones(8), 4).tolist() == [0.0] * 8
    with pytest.raises(DataError, match="not whole groups"):
        pg.group_relative(scores, 5)
    with pytest.raises(DataError, match="2 or more"):
        pg.leave_one_out(scores, 1)


def test_reinforce_pp_whitens_the_reward_to_go_of_the_batch():
    r, _, mask = ragged(5)
    got = pg.reinforce_pp(r, mask, gamma=GAMMA)[mask]
    assert float(got.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(got.var(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    to_go = row_by_row(lambda r: _q(r, r, len(r)), mask, r)[mask]
    torch.testing.assert_close(got, (to_go - to_go.mean()) / torch.sqrt(to_go.var(unbiased=False) + 1e-8))


def test_the_coefficient_rises_above_the_target_and_falls_below_it_by_a_bounded_step():
    assert pg.adapted_coefficient(0.1, 12.0, 6.0, 100, 10_000) == pytest.approx(0.1 * 1.002)
    assert pg.adapted_coefficient(0.1, 0.0, 6.0, 100, 10_000) == pytest.approx(0.1 * 0.998)
    assert pg.adapted_coefficient(0.1, 6.3, 6.0, 100, 10_000) == pytest.approx(0.1 * 1.0005)


# ---- problems with a known answer ----------------------------------------------------------------------------------

N, STEPS = 60_000, 3
LOGITS = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
"""Of action 1 against action 0, per step of the chain."""


def _chain(n, steps, seed=0):
    """A chain: at step t action 1 pays 1 + t with noise, action 0 pays ½; state = step. Exact gradient, Q and V too."""
    make = torch.Generator().manual_seed(seed)
    p = torch.sigmoid(LOGITS[:steps])
    actions = (torch.rand(n, steps, generator=make, dtype=torch.float64) < p).long()
    pay = torch.stack([torch.full((steps,), 0.5), 1.0 + torch.arange(steps)], -1).double()
    mean = pay[torch.arange(steps), actions]
    rewards = mean + torch.randn(n, steps, generator=make, dtype=torch.float64)
    of_step = p * pay[:, 1] + (1 - p) * pay[:, 0]
    weights = GAMMA ** torch.arange(steps).double()
    value = torch.stack([(of_step[t:] * weights[: steps - t]).sum() for t in range(steps)])
    later = torch.cat([value[1:], torch.zeros(1).double()])
    q = mean + GAMMA * later
    # the surrogate that every Ψ but the whole return estimates: Σ_t E[∂ log π · Q(s_t, a_t)]
    exact = p * (1 - p) * (pay[:, 1] - pay[:, 0])
    score = actions - p  # ∂ log π(a) / ∂ logit
    return rewards, actions, score, q, value, exact


def _estimates(steps):
    rewards, _, score, q, value, exact = _chain(N, steps)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    v = value.expand(N, steps)
    psi = {
        "return": pg.trajectory_return(rewards, mask, GAMMA),
        "to_go": pg.reward_to_go(rewards, mask, GAMMA),
        "baseline": pg.with_baseline(pg.reward_to_go(rewards, mask, GAMMA), v, mask),
        "q": pg.action_value(rewards, v, mask, GAMMA),
        "exact_q": q,
        "advantage": pg.with_baseline(q, v, mask),
        "two_step": pg.advantage(rewards, v, mask, GAMMA, 2),
        "gae": pg.gae(rewards, v, mask, GAMMA, LAM),
        "td": pg.td_residual(rewards, v, mask, GAMMA),
    }
    return {name: score * p for name, p in psi.items()}, exact


@pytest.mark.parametrize("steps", [1, STEPS], ids=["two-armed bandit", "chain"])
def test_every_psi_is_unbiased(steps):
    samples, exact = _estimates(steps)
    weights = GAMMA ** torch.arange(steps).double()
    for name, of in samples.items():
        expected = exact * weights if name == "return" else exact  # γ counts from the start in the whole return
        error = (of.mean(0) - expected).abs() / (of.std(0) / math.sqrt(N))
        assert float(error.max()) < 3.0, f"{name}: {error.tolist()} standard errors"


def test_the_variance_falls_from_the_whole_return_to_the_exact_advantage():
    samples, _ = _estimates(STEPS)
    spread = {name: float(of.var(0).sum()) for name, of in samples.items()}
    order = ["return", "to_go", "baseline", "gae", "td", "advantage"]
    assert [spread[name] for name in order] == sorted((spread[name] for name in order), reverse=True), spread
    assert spread["q"] < spread["to_go"]
    assert spread["exact_q"] < spread["q"]


def test_leave_one_out_is_unbiased_and_the_plain_group_mean_shrinks_the_gradient():
    rewards, _, score, _, _, exact = _chain(N, 1)
    loo = pg.leave_one_out(rewards.flatten(), 4) * score.flatten()
    se = float(loo.std()) / math.sqrt(N)
    assert abs(float(loo.mean()) - float(exact[0])) < 3 * se
    mean = pg.group_relative(rewards.flatten(), 4, scale=False) * score.flatten()
    assert abs(float(mean.mean()) - 0.75 * float(exact[0])) < 3 * se


def test_truncated_weights_have_no_gradient_and_a_ceiling():
    new = torch.tensor([0.0, 5.0], requires_grad=True)
    weights = pg.importance_weights(new, torch.zeros(2), 2.0)
    assert weights.tolist() == [1.0, 2.0]
    assert not weights.requires_grad
