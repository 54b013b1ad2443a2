"""Critic-free policy gradients: an answer is compared with others to the same prompt, or with the whole batch.

grpo          (R − mean) / std within the prompt's answers, 1/|o| per answer, KL in the loss   Shao et al. 2024
dr_grpo       R − mean, divided by a constant length                                           Liu et al. 2025
rloo          R − mean of the prompt's other answers, KL in the reward                         Ahmadian et al. 2024
reinforce_pp  reward-to-go with KL in the reward, whitened over the batch                      Hu et al. 2025
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from cluster.errors import RecipeError
from trainers import policy_gradient as pg
from trainers.batch import IGNORE, Batch
from trainers.experience import Experience
from trainers.iteration import Iterations, OnPolicy, Samples, policy_roles, share, weighted
from trainers.objective import Loss, Objective, Start
from trainers.roles import Role

MEAN_OVER = {"grpo": "answers", "dr_grpo": "constant", "rloo": "tokens", "reinforce_pp": "tokens"}


class GRPO(OnPolicy):
    """Settings of the objective."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"] = Field("grpo", description="the algorithm")
    mean_over: Literal["answers", "tokens", "constant"] | None = Field(
        None, description="what the loss is a mean over; None: as the algorithm has it (tokens: DAPO)"
    )
    gamma: float = Field(1.0, ge=0, le=1, description="reinforce_pp: discount per token")

    def over(self) -> str:
        """The mean in force."""
        return self.mean_over or MEAN_OVER[self.advantage]

    def kl_in_reward(self) -> bool:
        """Where the distance to the reference counts."""
        return self.advantage in ("rloo", "reinforce_pp")


class GRPOObjective(Iterations):
    """Groups of answers."""

    settings: GRPO

    def known(self, roles: Mapping[str, Role], samples: Samples) -> dict[str, Tensor]:
        settings, mask, group = self.settings, samples.mask, self.sampling.samples
        if settings.kl_in_reward() and "reference" in roles:
            kl = pg.kl_estimate(samples.old, samples.reference, settings.kl_estimate)
            rewards = pg.kl_rewards(samples.scores, kl, mask, self.penalty)
        else:
            rewards = pg.kl_rewards(samples.scores, samples.old * 0, mask, 0.0)
        if settings.advantage == "reinforce_pp":
            to_go = pg.reward_to_go(rewards, mask, settings.gamma)
            over = self.ranks.sum(pg.moments(to_go, mask))
            return {"advantages": pg.reinforce_pp(rewards, mask, gamma=settings.gamma, over=over)}
        scores = rewards.sum(-1)
        if settings.advantage == "rloo":
            per_answer = pg.leave_one_out(scores, group)
        else:
            per_answer = pg.group_relative(scores, group, scale=settings.advantage == "grpo")
        return {"advantages": per_answer[:, None] * mask}

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"policy": share(batch.targets != IGNORE, self.settings.over(), self.sampling.max_tokens)}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        assert isinstance(batch, Experience)
        in_loss = 0.0 if self.settings.kl_in_reward() or "reference" not in roles else self.penalty
        terms, figures = self.policy_terms(roles["policy"], batch, in_loss)
        there = batch.to(terms.device)
        total, count = weighted(terms, there.mask, self.settings.over(), self.sampling.max_tokens)
        scale = count / max(1.0, float(there.mask.sum()))
        return {"policy": Loss(total, count, {name: value * scale for name, value in figures.items()})}


SETTINGS = GRPO


def roles(settings: GRPO, start: Start) -> dict[str, Role]:
    """The policy, the reference when kl > 0, and the reward model."""
    if settings.advantage != "reinforce_pp" and settings.draws().samples < 2:
        raise RecipeError(f"objective.sampling.samples: {settings.advantage} compares answers; give 2 or more")
    return policy_roles(settings, start)


def objective(settings: GRPO, start: Start) -> Objective:
    """Prompts, answers, groups."""
    return GRPOObjective(settings, start)
