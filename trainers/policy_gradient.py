"""What weighs a token's log-probability in a policy gradient: every Ψ, value targets, KL estimates, PPO's losses.

    ∇J = E[ Σ_t Ψ_t ∇ log π(a_t | s_t) ]        Schulman et al. 2016 (GAE), equation 1

All tensors are [rows, time]; `mask` is bool, true at the tokens that the policy chose. It may have holes (the output
of a tool between two turns): every function here gives what it would give with the masked tokens deleted, and 0 at
their places. The episode ends with a row's last true token; the value after it is 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cluster.errors import DataError

# ---- Ψ from rewards alone ------------------------------------------------------------------------------------------


def trajectory_return(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Ψ_t = Σ_{k≥0} γ^k r_k, the same for every token of the row. Unbiased, of the highest variance.

    REINFORCE, Williams 1992. rewards, mask [rows, time] → [rows, time].
    """
    before = mask.cumsum(-1) - mask.long()
    weights = torch.pow(gamma, before.to(rewards.dtype))
    whole = (rewards * mask * weights).sum(-1, keepdim=True)
    return whole * mask


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Ψ_t = Σ_{l≥0} γ^l r_{t+l}: an action is not credited with what came before it.

    Sutton et al. 2000. rewards, mask [rows, time] → [rows, time].
    """
    out = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        running = torch.where(here, rewards[:, t] + gamma * running, running)
        out[:, t] = running * here
    return out


def with_baseline(psi: Tensor, baseline: Tensor, mask: Tensor) -> Tensor:
    """Ψ_t = Ψ'_t − b(s_t): still unbiased when b does not look at the action. All [rows, time], or b [rows, 1].

    Williams 1992, section 3.
    """
    return (psi - baseline) * mask


# ---- Ψ with a critic -----------------------------------------------------------------------------------------------


def action_value(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, steps: int = 1) -> Tensor:
    """Ψ_t = Q^(n)(s_t, a_t) = Σ_{l<n} γ^l r_{t+l} + γ^n V(s_{t+n}); V is 0 after the end, so a large n needs no critic.

    rewards, values, mask [rows, time]; `steps` is n ≥ 1 → [rows, time]. Sutton & Barto 2018, section 7.1.
    """
    if steps < 1:
        raise DataError(f"an n-step value needs steps >= 1, found {steps}")
    order, kept = _together(mask)
    r, v = _gather(rewards, order) * kept, _gather(values, order) * kept
    width = r.shape[1]
    out = torch.zeros_like(r)
    for ahead in range(min(steps, width)):
        out[:, : width - ahead] += gamma**ahead * r[:, ahead:]
    if steps < width:
        out[:, : width - steps] += gamma**steps * v[:, steps:]
    return _scatter(out * kept, order)


def advantage(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, steps: int = 1) -> Tensor:
    """Ψ_t = A^(n) = Q^(n)(s_t, a_t) − V(s_t): how much better the action was than the policy's mean.

    Shapes as in `action_value`. Mnih et al. 2016 (A3C), section 4.
    """
    return (action_value(rewards, values, mask, gamma, steps) - values) * mask


def td_residual(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Ψ_t = δ_t = r_t + γ V(s_{t+1}) − V(s_t), where t+1 is the next unmasked token. Lowest variance, biased by V."""
    return (rewards + gamma * _next_value(values, mask) - values) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Ψ_t = Σ_{l≥0} (γλ)^l δ_{t+l}: λ = 0 is the TD residual, λ = 1 the reward-to-go with V as baseline.

    rewards, values, mask [rows, time] → [rows, time]. Schulman et al. 2016, equation 16. At a hole the running sum
    and the next value are carried over unchanged, which is deleting the token.
    """
    out = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, t], following)
        out[:, t] = running * here
    return out


Psi = Literal["return", "reward_to_go", "baseline", "q", "advantage", "td", "gae"]


def psi_of(
    name: Psi, rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95, steps: int = 1
) -> Tensor:
    """Any Ψ by its name, [rows, time]; `baseline` is reward-to-go less V, `q` and `advantage` look `steps` ahead."""
    if name == "return":
        return trajectory_return(rewards, mask, gamma)
    if name == "reward_to_go":
        return reward_to_go(rewards, mask, gamma)
    if name == "baseline":
        return with_baseline(reward_to_go(rewards, mask, gamma), values, mask)
    if name == "q":
        return action_value(rewards, values, mask, gamma, steps)
    if name == "advantage":
        return advantage(rewards, values, mask, gamma, steps)
    if name == "td":
        return td_residual(rewards, values, mask, gamma)
    return gae(rewards, values, mask, gamma, lam)


# ---- what the critic learns ----------------------------------------------------------------------------------------


def td_target(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """The critic's target r_t + γ V(s_{t+1}), V from before the update. [rows, time]."""
    return (rewards + gamma * _next_value(values, mask)) * mask


def gae_target(advantages: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The critic's target A_t + V(s_t): the λ-return. `advantages` before whitening. [rows, time]."""
    return (advantages + values) * mask


def value_loss(
    values: Tensor, targets: Tensor, mask: Tensor, old_values: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """½ Σ_t max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²); without `clip` the plain half square. A scalar sum.

    All [rows, time]. Schulman et al. 2017 and its reference code (the paper itself does not clip values).
    """
    squares = (values - targets) ** 2
    if clip is not None:
        if old_values is None:
            raise DataError("a clipped value loss needs the values from before the update")
        near = old_values + (values - old_values).clamp(-clip, clip)
        squares = torch.maximum(squares, (near - targets) ** 2)
    return 0.5 * (squares * mask).sum()


# ---- whitening -----------------------------------------------------------------------------------------------------


def moments(x: Tensor, mask: Tensor) -> list[float]:
    """[count, Σx, Σx²] of the unmasked entries in float64: add them over ranks before `whiten`."""
    kept = x[mask].double()
    return [float(kept.numel()), float(kept.sum()), float((kept * kept).sum())]


def whiten(
    x: Tensor,
    mask: Tensor,
    *,
    unbiased: bool = True,
    keep_mean: bool = False,
    over: list[float] | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """(x − mean) / √(var + ε) over all unmasked entries, 0 at masked ones.

    `unbiased` divides the variance by n − 1 (verl, TRL), else by n (OpenRLHF); they differ by √(n/(n−1)). `over` are
    `moments` summed over ranks; None: of `x` alone. One entry has no spread: it becomes 0 (or keeps its mean).
    """
    n, total, squares = over if over is not None else moments(x, mask)
    if n < 1:
        return torch.zeros_like(x)
    mean = total / n
    spread = max(0.0, squares / n - mean * mean)
    if unbiased:
        spread *= n / max(1.0, n - 1)
    out = (x - mean) / math.sqrt(spread + eps)
    return (out + mean if keep_mean else out) * mask


# ---- distance to the reference -------------------------------------------------------------------------------------

KL = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs: Tensor, reference: Tensor, kind: KL = "k3") -> Tensor:
    """KL(π ‖ π_ref) of single samples from π, with x = log π − log π_ref, token by token, same shape as the inputs.

    k1 = x (unbiased, may be negative), k2 = x²/2 (biased, low variance), k3 = e^{−x} − 1 + x (unbiased, ≥ 0).
    Schulman 2020, "Approximating KL divergence". x is cut at ±20 before the exponential and the result at ±10.
    """
    x = (log_probs - reference).clamp(-20.0, 20.0)
    if kind == "k1":
        out = x
    elif kind == "k2":
        out = x * x / 2
    elif kind == "k3":
        out = torch.expm1(-x) + x
    else:
        raise DataError(f"no KL estimate named {kind!r}; use k1, k2 or k3")
    return out.clamp(-10.0, 10.0)


def kl_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """r_t = −β kl_t, plus the row's score at its last unmasked token. Ouyang et al. 2022 (InstructGPT), section 3.5.

    scores [rows], kl and mask [rows, time] → [rows, time]. A row without a token gets no reward at all.
    """
    rewards = -coefficient * kl * mask
    last = mask.shape[1] - 1 - mask.flip(-1).long().argmax(-1)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores * mask.any(-1)
    return rewards


def adapted_coefficient(coefficient: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """β ← β (1 + clip(kl/target − 1, ±0.2) · samples/horizon): more pull when the policy is further away than wanted.

    Ziegler et al. 2019, section 2.2. `kl` is the mean over sequences of the sum over tokens.
    """
    error = min(0.2, max(-0.2, kl / target - 1.0))
    return coefficient * (1.0 + error * samples / horizon)


# ---- the policy's losses -------------------------------------------------------------------------------------------


def policy_gradient_loss(log_probs: Tensor, psi: Tensor, mask: Tensor) -> Tensor:
    """−Σ_t Ψ_t log π(a_t | s_t): its gradient is the estimate of −∇J. All [rows, time]; a scalar sum."""
    return -(psi.detach() * log_probs * mask).sum()


def ppo_terms(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Per token −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A), ρ = π/π_old, and whether the clip held (bool).

    With `dual_clip` c, for A < 0 the loss is at most −cA (Ye et al. 2020), so that one token with a huge ratio does not
    rule the step. Schulman et al. 2017, equation 7; ε_low ≠ ε_high as in Yu et al. 2025 (DAPO). Same shapes throughout.
    """
    ratio = (log_probs - old_log_probs).clamp(-20.0, 20.0).exp()
    free = -ratio * advantages
    held = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    out = torch.maximum(free, held)
    if dual_clip is not None:
        out = torch.where(advantages < 0, torch.minimum(out, -dual_clip * advantages), out)
    return out, held > free


def importance_weights(log_probs: Tensor, sampler_log_probs: Tensor, limit: float) -> Tensor:
    """min(exp(log π_trainer − log π_sampler), limit), without gradient: corrects a sampler that computes differently.

    Truncated importance sampling, Ionides 2008; any shape.
    """
    return (log_probs - sampler_log_probs).detach().clamp(-20.0, 20.0).exp().clamp(max=limit)


# ---- groups of answers to one prompt -------------------------------------------------------------------------------


def group_relative(scores: Tensor, group: int, *, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO: A_i = (R_i − mean) / (std + ε) within each group of `group` answers to one prompt (std over n − 1).

    With scale=False only the mean is taken off: Dr. GRPO (Liu et al. 2025), which does not favour prompts of little
    spread. scores [prompts · group], answers of a prompt next to each other → same shape. A group of one has no
    neighbours to be compared with: it keeps its score, as verl has it. Shao et al. 2024 (DeepSeekMath), section 4.1.
    """
    if group == 1:
        return scores / (1.0 + eps) if scale else scores.clone()
    rows = _grouped(scores, group)
    out = rows - rows.mean(-1, keepdim=True)
    if scale:
        out = out / (rows.std(-1, keepdim=True) + eps)
    return out.reshape(-1)


def leave_one_out(scores: Tensor, group: int) -> Tensor:
    """RLOO: A_i = R_i − mean of the other answers' R = n/(n−1) · (R_i − mean). Unbiased: the baseline excludes i.

    scores [prompts · group] → same shape; needs group ≥ 2. Ahmadian et al. 2024, section 3.2.
    """
    if group < 2:
        raise DataError(f"leave-one-out needs 2 or more answers per prompt, found {group}")
    rows = _grouped(scores, group)
    return ((rows - rows.mean(-1, keepdim=True)) * (group / (group - 1))).reshape(-1)


def reinforce_pp(
    rewards: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    unbiased: bool = False,
    over: list[float] | None = None,
) -> Tensor:
    """REINFORCE++: reward-to-go (KL penalty inside the rewards), whitened over the whole batch instead of a critic.

    rewards, mask [rows, time] → [rows, time]; `over` are the ranks' summed `moments` of the reward-to-go.
    Hu et al. 2025, section 3.
    """
    return whiten(reward_to_go(rewards, mask, gamma), mask, unbiased=unbiased, over=over)


# ---- holes ---------------------------------------------------------------------------------------------------------


def _next_value(values: Tensor, mask: Tensor) -> Tensor:
    """V at the next unmasked token of the row, 0 where there is none."""
    out = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        out[:, t] = following
        following = torch.where(mask[:, t], values[:, t], following)
    return out


def _together(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The order that brings each row's unmasked entries to its front, and the mask in that order."""
    order = torch.argsort(~mask, dim=-1, stable=True)
    return order, mask.gather(-1, order)


def _gather(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(-1, order)


def _scatter(x: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, order, x)


def _grouped(scores: Tensor, group: int) -> Tensor:
    if scores.numel() % group:
        raise DataError(f"{scores.numel()} scores are not whole groups of {group}")
    return scores.reshape(-1, group)
