"""Critic-free policy gradients: an answer is compared with others to the same prompt, or with the whole batch.

grpo          (R − mean) / std within the prompt's answers, 1/|o| per answer, KL in the loss   Shao et al. 2024
dr_grpo       R − mean, divided by a constant length                                           Liu et al. 2025
rloo          R − mean of the prompt's other answers, KL in the reward                         Ahmadian et al. 2024
reinforce_pp  reward-to-go with KL in the reward, whitened over the batch                      Hu et al. 2025
return        the trajectory's return, KL in the reward, nothing taken off (REINFORCE)         Williams 1992
reward_to_go  what came after the token, KL in the reward, nothing taken off                   Sutton et al. 2000
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from trainers import policy_gradient as pg
from trainers.batch import IGNORE, Batch
from trainers.experience import Experience
from trainers.iteration import Iterations, OnPolicy, Samples, policy_roles, share, weighted
from trainers.objective import Loss, Objective, Start
from trainers.roles import Role

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "return", "reward_to_go"]
MEAN_OVER = {"grpo": "answers", "rloo": "tokens", "reinforce_pp": "tokens"}
"""What the loss is a mean over; a constant length where nothing is said, so that long answers count in full."""
ALONE = ("reinforce_pp", "return", "reward_to_go")
"""Those that need no second answer to a prompt."""


class GRPO(OnPolicy):
    """Settings of the objective."""

    advantage: Advantage = Field("grpo", description="the algorithm")
    mean_over: Literal["answers", "tokens", "constant"] | None = Field(
        None, description="what the loss is a mean over; None: as the algorithm has it (tokens: DAPO)"
    )
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token, of those that need no second answer")

    def over(self) -> str:
        """The mean in force."""
        return self.mean_over or MEAN_OVER.get(self.advantage, "constant")

    def kl_in_reward(self) -> bool:
        """Where the distance to the reference counts."""
        return self.advantage in ("rloo", *ALONE)


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
        found = self._advantages(rewards, mask, group)
        if settings.variance_every:
            to_go = pg.reward_to_go(rewards, mask, settings.gamma)
            samples.psis = {"return": pg.trajectory_return(rewards, mask, settings.gamma), "reward_to_go": to_go}
            if group > 1:
                samples.psis["rloo"] = pg.leave_one_out(rewards.sum(-1), group)[:, None] * mask
                samples.psis["grpo"] = pg.group_relative(rewards.sum(-1), group)[:, None] * mask
        return {"advantages": found}

    def _advantages(self, rewards: Tensor, mask: Tensor, group: int) -> Tensor:
        settings = self.settings
        if settings.advantage == "return":
            return pg.trajectory_return(rewards, mask, settings.gamma)
        if settings.advantage == "reward_to_go":
            return pg.reward_to_go(rewards, mask, settings.gamma)
        if settings.advantage == "reinforce_pp":
            to_go = pg.reward_to_go(rewards, mask, settings.gamma)
            over = self.ranks.sum(pg.moments(to_go, mask))
            return pg.reinforce_pp(rewards, mask, gamma=settings.gamma, over=over)
        scores = rewards.sum(-1)
        if settings.advantage == "rloo":
            per_answer = pg.leave_one_out(scores, group)
        else:
            per_answer = pg.group_relative(scores, group, scale=settings.advantage == "grpo")
        return per_answer[:, None] * mask

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
    return policy_roles(settings, start)


def objective(settings: GRPO, start: Start) -> Objective:
    """Prompts, answers, groups."""
    return GRPOObjective(settings, start)
