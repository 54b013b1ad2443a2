"""PPO: clipped ratios, a critic, generalised advantages, and the distance to the reference as part of the reward.

Schulman et al. 2017; for language models Ziegler et al. 2019 and Ouyang et al. 2022 (InstructGPT), section 3.5.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field
from torch import Tensor

from trainers import policy_gradient as pg
from trainers.batch import IGNORE, Batch
from trainers.engine import Engine
from trainers.experience import Experience
from trainers.iteration import Iterations, OnPolicy, Samples, policy_roles
from trainers.objective import Loss, Objective, Start
from trainers.peft.tune import prepare
from trainers.reward import PackedReward, classifier, load_reward
from trainers.roles import Role


class PPO(OnPolicy):
    """Settings of the objective."""

    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    psi: pg.Psi = Field("gae", description="what weighs a token: return, reward_to_go, baseline, q, advantage, td, gae")
    psi_steps: int = Field(1, gt=0, description="how far q and advantage look before they ask the critic")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE")
    critic: str = Field(
        "start", description="start: the run's first weights with a new head; or a reward model's folder"
    )
    critic_head_std: float = Field(0.0, ge=0, description="initial weights of a new head; 0: it first says 0")
    critic_rate: float = Field(1.0, gt=0, description="times the policy's learning rate")
    target: Literal["gae", "td"] = Field(
        "gae", description="what the critic learns: A + V, or r + γ V of the next state"
    )
    value_clip: float | None = Field(0.2, gt=0, description="how far a value may gain per iteration; None: freely")
    whiten: Literal["unbiased", "biased", "none"] = Field(
        "unbiased", description="advantages over the whole batch: variance over n − 1 (verl, TRL), or n (OpenRLHF)"
    )
    whiten_rewards: bool = Field(False, description="scale rewards to variance 1 first, keeping their mean")
    kl: float = Field(0.05, ge=0, description="weight β of the distance to the reference")
    kl_estimate: Literal["k1", "k2", "k3"] = Field("k1", description="see policy_gradient.kl_estimate")
    epochs: int = Field(4, gt=0, description="passes over the answers of one iteration")
    unfinished: float | None = Field(None, description="score of an answer cut at max_tokens instead of its own")


class PPOObjective(Iterations):
    """Answers with values, token by token."""

    settings: PPO

    def known(self, roles: Mapping[str, Role], samples: Samples) -> dict[str, Tensor]:
        settings, mask = self.settings, samples.mask
        values = self.over(roles["critic"], samples, "values") * mask
        scores = samples.scores
        if settings.unfinished is not None:
            scores = scores.where(samples.finished > 0, scores.new_tensor(settings.unfinished))
        kl = pg.kl_estimate(samples.old, samples.reference, settings.kl_estimate)
        rewards = pg.kl_rewards(scores, kl, mask, self.penalty)
        if settings.whiten_rewards:
            over = self.ranks.sum(pg.moments(rewards, mask))
            rewards = pg.whiten(rewards, mask, keep_mean=True, over=over)
        gamma, lam, steps = settings.gamma, settings.lam, settings.psi_steps
        advantages = pg.psi_of(settings.psi, rewards, values, mask, gamma, lam, steps)
        if settings.variance_every:
            samples.psis = {
                name: pg.psi_of(name, rewards, values, mask, gamma, lam, steps) for name in get_args(pg.Psi)
            }
        if settings.target == "gae":
            returns = pg.gae_target(pg.gae(rewards, values, mask, gamma, lam), values, mask)
        else:
            returns = pg.td_target(rewards, values, mask, settings.gamma)
        if settings.whiten != "none":
            over = self.ranks.sum(pg.moments(advantages, mask))
            advantages = pg.whiten(advantages, mask, unbiased=settings.whiten == "unbiased", over=over)
        return {"advantages": advantages, "values": values, "returns": returns}

    def counts(self, batch: Batch) -> dict[str, float]:
        tokens = float((batch.targets != IGNORE).sum())
        return {"policy": tokens, "critic": tokens}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        assert isinstance(batch, Experience)
        terms, figures = self.policy_terms(roles["policy"], batch)
        there = batch.to(terms.device)
        tokens = float(there.mask.sum())
        values = roles["critic"](batch, "values").float()
        clip = self.settings.value_clip
        wrong = pg.value_loss(values, there.returns, there.mask, there.values, clip)
        return {
            "policy": Loss(terms.where(there.mask, 0.0).sum(), tokens, figures),
            "critic": Loss(wrong, tokens, {"value": (values.detach() * there.mask).sum()}),
        }


SETTINGS = PPO


def roles(settings: PPO, start: Start) -> dict[str, Role]:
    """The policy, the critic (a model of its own), the reference when kl > 0, and the reward model."""
    if settings.critic == "start":
        first = classifier(copy.deepcopy(start.lm), settings.critic_head_std, start.recipe.seed)
    else:
        first = load_reward(settings.critic).lm
    packed = PackedReward(first, "sdpa")
    if start.recipe.peft is not None:  # few parameters here too; masks of pruning are the policy's alone
        prepare(packed, start.recipe, start.engine)
    critic = Engine(packed, start.engine, start.ranks, start.recipe.micro_rows)
    critic.rate_factor = settings.critic_rate
    return {**policy_roles(settings, start), "critic": critic}


def objective(settings: PPO, start: Start) -> Objective:
    """Prompts, answers, values."""
    return PPOObjective(settings, start)
