"""Direct preference: the policy learns from judged answers themselves, held near a reference, without a reward model.

Losses of pairs take h = (log π(y_w) − log ρ(y_w)) − (log π(y_l) − log ρ(y_l)), with w the better and l the worse
answer to one prompt, π the policy, ρ the frozen reference, and log-probabilities summed over the answer's tokens.
All are per pair, [pairs]; the engine divides by the number of pairs of the whole optimiser step.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from cluster.errors import DataError, RecipeError
from cluster.settings import Settings
from pipeline.schema import DATASET_FILE
from trainers import pretrain
from trainers.attention import pick_attention
from trainers.batch import IGNORE, Batch, PackedRows, StepRows, shared_out
from trainers.engine import Engine
from trainers.memory import Footprint, asked_bytes, token_losses_bytes
from trainers.model import PackedLM, load
from trainers.objective import Loss, Objective, Start, Useful
from trainers.roles import Frozen, Role

Kind = Literal["dpo", "ipo", "cdpo", "robust", "hinge", "normalised", "simpo", "kto"]


class Preference(Settings):
    """Settings of the objective."""

    loss: Kind = Field("dpo", description="the algorithm; cdpo and robust need `smoothing`")
    beta: float = Field(0.1, gt=0, description="how much a log-ratio counts (τ of IPO; SimPO's paper takes 2 to 10)")
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs believed to be judged the wrong way round")
    per_token: bool = Field(True, description="IPO: log-ratios per token (as its authors do), or summed (as printed)")
    target: float = Field(0.5, ge=0, description="SimPO: the margin γ that βΔ should exceed")
    desirable_weight: float = Field(1.0, gt=0, description="KTO: weight of desirable answers")
    undesirable_weight: float = Field(1.0, gt=0, description="KTO: weight of undesirable answers")
    pairs: Literal["all", "best_worst"] = Field("all", description="of the ranked answers of one prompt")
    reference: str = Field(
        "start", description="start: the run's own first weights; stored: column `reference` of the data; or a folder"
    )
    validation_rows: int = Field(256, ge=0, description="rows of the held-out split per evaluation; 0: all of them")


# ---- losses ------------------------------------------------------------------------------------------------------


def dpo(h: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """−(1 − ε) log σ(βh) − ε log σ(−βh). Rafailov et al. 2023, eq. 7 (ε = 0); Mitchell 2023, conservative DPO."""
    return -(1 - smoothing) * logsigmoid(beta * h) - smoothing * logsigmoid(-beta * h)


def robust(h: Tensor, beta: float, smoothing: float) -> Tensor:
    """(−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε): unbiased under flips. Ray Chowdhury et al. 2024, eq. 9."""
    return (-(1 - smoothing) * logsigmoid(beta * h) + smoothing * logsigmoid(-beta * h)) / (1 - 2 * smoothing)


def ipo(h: Tensor, beta: float) -> Tensor:
    """(h − 1 / 2β)². Azar et al. 2023, eq. 17 (β is τ); with h per token as in the authors' own runs."""
    return (h - 1 / (2 * beta)).square()


def hinge(h: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βh). Zhao et al. 2023 (SLiC), normalised by a reference as in Liu et al. 2023 (RSO), table 1."""
    return torch.relu(1 - beta * h)


def simpo(difference: Tensor, beta: float, target: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(β(log π(y_w) / |y_w| − log π(y_l) / |y_l|) − γ), no reference. Meng et al. 2024, eq. 6."""
    scaled = beta * difference - target
    return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)


def kto(ratio: Tensor, desirable: Tensor, kl: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """λ_D (1 − σ(β(r − z))) of a desirable answer, λ_U (1 − σ(β(z − r))) of an undesirable one.

    ratio r = log π(y) − log ρ(y) and bool `desirable`, both [answers]; z = max(0, mean of r over mismatched prompts
    and answers of the whole step), a constant. Ethayarajh et al. 2024, eq. 8.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(ratio.dtype)
    better, worse = ratio.new_tensor(weights)
    weight = torch.where(desirable, better, worse)
    return weight * (1 - torch.sigmoid(beta * sign * (ratio - kl)))


# ---- from packed rows to answers and pairs -----------------------------------------------------------------------


def answer_sums(values: Tensor, batch: Batch) -> Tensor:
    """Sum of per-position values over each document: [rows, seq_len] → [rows, documents], padding left out."""
    most = int(batch.doc_index.max()) + 1
    wide = max(most, batch.extra["ends"].shape[1])
    sums = values.new_zeros((values.shape[0], wide)).scatter_add(1, batch.doc_index.long(), values)
    return sums[:, : batch.extra["ends"].shape[1]]


def answer_lengths(batch: Batch) -> Tensor:
    """How many targets each answer has, [rows, documents]."""
    return answer_sums((batch.targets != IGNORE).long(), batch)


class Pairs(NamedTuple):
    """Row, document of the better and document of the worse answer, each int64 [pairs]."""

    row: Tensor
    better: Tensor
    worse: Tensor


def pairs_of(batch: Batch, which: Literal["all", "best_worst"] = "all") -> Pairs:
    """All pairs of answers to one prompt with different scores; or of each prompt the best and the worst only."""
    scores, groups, valid = batch.extra["scores"], batch.extra["groups"], batch.extra["ends"] > 0
    same = (groups[:, :, None] == groups[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    better = same & (scores[:, :, None] > scores[:, None, :])
    if which == "best_worst":
        number = torch.arange(scores.shape[1], device=scores.device)
        beaten = same & (
            (scores[:, None, :] > scores[:, :, None])
            | ((scores[:, None, :] == scores[:, :, None]) & (number[None, None, :] < number[None, :, None]))
        )
        beats = same & (
            (scores[:, None, :] < scores[:, :, None])
            | ((scores[:, None, :] == scores[:, :, None]) & (number[None, None, :] < number[None, :, None]))
        )
        better &= ~beaten.any(2)[:, :, None] & ~beats.any(2)[:, None, :]
    return Pairs(*better.nonzero(as_tuple=True))


def mismatched(batch: Batch) -> tuple[Batch, Tensor]:
    """Each prompt with the answer to another prompt of its row, and bool [rows, documents]: which are such.

    The answers are rotated by the size of the row's largest group, so that every row is exactly as full as before.
    KTO's estimate of the distance to the reference (Ethayarajh et al. 2024, section 4.1).
    """
    ids, targets = batch.input_ids.clone(), torch.full_like(batch.targets, IGNORE)
    positions, documents = torch.arange(ids.shape[1]).repeat(ids.shape[0], 1), torch.zeros_like(batch.doc_index)
    counted = torch.zeros_like(batch.extra["ends"], dtype=torch.bool)
    for row in range(batch.rows):
        ends = [int(end) for end in batch.extra["ends"][row] if end > 0]
        begins = [0, *ends][: len(ends)]
        groups = batch.extra["groups"][row, : len(ends)].tolist()
        seams = []
        for begin, end in zip(begins, ends, strict=True):
            first = (batch.targets[row, begin:end] != IGNORE).nonzero()
            seams.append(begin + int(first[0]) + 1 if len(first) else end)
        turn = max((groups.count(group) for group in set(groups)), default=0)
        place = 0
        for number, (begin, seam) in enumerate(zip(begins, seams, strict=True)):
            other = (number + turn) % len(ends)
            asked, answered = batch.input_ids[row, begin:seam], batch.input_ids[row, seams[other] : ends[other]]
            size = len(asked) + len(answered)
            ids[row, place : place + size] = torch.cat([asked, answered])
            if groups[number] != groups[other] and len(asked) and len(answered):
                counted[row, number] = True
                targets[row, place + len(asked) - 1 : place + size - 1] = answered
            positions[row, place : place + size] = torch.arange(size)
            documents[row, place : place + size] = number
            place += size
        if place < ids.shape[1]:
            ids[row, place:] = 0
            positions[row, place:] = torch.arange(ids.shape[1] - place)
            documents[row, place:] = len(ends)
    return Batch(ids, positions, documents, targets, {"ends": batch.extra["ends"]}), counted


def pair_losses(settings: Preference, policy: Tensor, reference: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """(losses [pairs], h or the difference that is compared with 0 [pairs]) of all losses but KTO.

    policy and reference: log-probabilities of each answer, [rows, documents]; no reference for SimPO.
    """
    pairs = pairs_of(batch, settings.pairs)
    values = policy if reference is None else policy - reference
    per_token = settings.loss in ("normalised", "simpo") or (settings.loss == "ipo" and settings.per_token)
    if per_token:
        values = values / answer_lengths(batch).clamp(min=1)
    h = values[pairs.row, pairs.better] - values[pairs.row, pairs.worse]
    beta, smoothing = settings.beta, settings.smoothing
    if settings.loss == "simpo":
        return simpo(h, beta, settings.target, smoothing), h
    if settings.loss == "ipo":
        return ipo(h, beta), h
    if settings.loss == "hinge":
        return hinge(h, beta), h
    if settings.loss == "robust":
        return robust(h, beta, smoothing), h
    return dpo(h, beta, smoothing), h


def preference_loss(
    settings: Preference, policy: Tensor, reference: Tensor | None, batch: Batch, kl: float = 0.0
) -> Loss:
    """Σ over the pairs (KTO: over the labelled answers) of the chosen loss, and their number.

    policy, reference [rows, documents]. Metrics, summed over the same items: `accuracy`, how often the better answer
    gained more; `margin`, β times by how much (KTO: β times the gain of desirable answers less that of others).
    """
    if settings.loss != "kto":
        losses, h = pair_losses(settings, policy, reference, batch)
        gains = h.detach()
        figures = {"accuracy": (gains > 0).double().sum(), "margin": settings.beta * gains.sum()}
        return Loss(losses.sum() + 0.0 * policy.sum(), float(len(losses)), figures)
    assert reference is not None
    labels = batch.extra["desirable"].to(policy.device)
    used = labels > 0
    ratio, liked = (policy - reference)[used], labels[used] == 2
    weights = (settings.desirable_weight, settings.undesirable_weight)
    losses = kto(ratio, liked, torch.as_tensor(kl, dtype=ratio.dtype, device=ratio.device), settings.beta, weights)
    signed = torch.where(liked, 1.0, -1.0) * ratio.detach()
    right = torch.where(liked, 1.0, -1.0) * (ratio.detach() - kl) > 0
    figures = {"accuracy": right.double().sum(), "margin": settings.beta * signed.sum()}
    return Loss(losses.sum() + 0.0 * policy.sum(), float(len(losses)), figures)


def log_probabilities(role: Role, batch: Batch) -> Tensor:
    """log p of each answer given its prompt, summed over its tokens, [rows, documents]."""
    return -answer_sums(role(batch, "token_losses"), batch.to(_device(role)))


def _device(role: Any) -> torch.device:
    return role.ranks.device if isinstance(role, Engine) else role.device  # type: ignore[no-any-return]


# ---- the objective -----------------------------------------------------------------------------------------------


class PreferenceObjective:
    """Judged answers from a cursor on; the reference is asked live, or its stored answers are read."""

    def __init__(self, settings: Preference, start: Start):
        self.settings, self.ranks = settings, start.ranks
        if not start.data.about.get("answers"):
            raise DataError(f"{start.data.folder}: no judged answers; make them with `corpusmill answers`")
        if settings.reference == "stored" and "reference" not in start.data.read(0, 1).extra:
            raise DataError(f"{start.data.folder}: no column `reference`; write_reference adds it")
        self.loader = start.loader()
        nothing = "hold no label of a single answer" if settings.loss == "kto" else "hold no two answers to compare"
        self.useful = Useful(self.loader, lambda batch: self.counts(batch)["policy"], start, nothing)
        self.held_out: list[Batch] = []
        if start.data.has_split("validation"):
            split = PackedRows(start.data.folder, "validation")
            rows = min(settings.validation_rows or split.rows, split.rows)
            self.held_out = shared_out(
                split, 0, rows, start.recipe.micro_rows, rank=start.ranks.rank, world=start.ranks.world
            ).micro_batches
        self._kl = 0.0

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        """The loader's steps; KTO's distance is measured before each, over the whole of it."""
        for step in self.useful:
            if self.settings.loss == "kto":
                self._kl = self.distance(roles, step.micro_batches)
            yield step

    def footprint(self, roles: Mapping[str, Role], tokens: int) -> Footprint:
        """Losses per token; the reference is asked while the policy's activations wait."""
        policy: Any = roles["policy"]
        loss = token_losses_bytes(tokens, policy.module.lm.config.vocab_size)
        asked = [asked_bytes(role.model, tokens) for role in roles.values() if isinstance(role, Frozen)]
        return Footprint(max([loss, *asked]))

    @torch.no_grad()
    def distance(self, roles: Mapping[str, Role], batches: list[Batch]) -> float:
        """max(0, mean log-ratio of mismatched prompts and answers), over micro-batches and ranks. A collective."""
        total = count = 0.0
        for batch in batches:
            other, counted = mismatched(batch)
            ratio = log_probabilities(roles["policy"], other) - log_probabilities(roles["reference"], other)
            total += float(ratio.cpu()[counted].double().sum())
            count += float(counted.sum())
        total, count = self.ranks.sum([total, count])
        return max(0.0, total / count) if count else 0.0

    def counts(self, batch: Batch) -> dict[str, float]:
        if self.settings.loss == "kto":
            return {"policy": float((batch.extra["desirable"] > 0).sum())}
        return {"policy": float(len(pairs_of(batch, self.settings.pairs).row))}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        policy = log_probabilities(roles["policy"], batch)
        reference = None
        if self.settings.reference == "stored" and self.settings.loss != "simpo":
            reference = batch.extra["reference"].to(policy)
        elif "reference" in roles:
            reference = log_probabilities(roles["reference"], batch)
        there = batch.to(policy.device)
        return {"policy": preference_loss(self.settings, policy, reference, there, self._kl)}

    @torch.no_grad()
    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, float]:
        """Loss, accuracy and margin on held-out prompts. A collective."""
        if not self.held_out:
            return {}
        if self.settings.loss == "kto":
            self._kl = self.distance(roles, self.held_out)
        sums = [0.0] * 4
        for batch in self.held_out:
            loss = self.loss(roles, batch)["policy"]
            values = [float(value) for value in (loss.total, loss.metrics["accuracy"], loss.metrics["margin"])]
            sums = [before + value for before, value in zip(sums, [*values, loss.count], strict=True)]
        total, right, margin, count = self.ranks.sum(sums)
        names = ("validation", "validation_accuracy", "validation_margin")
        means = {name: value / max(count, 1.0) for name, value in zip(names, (total, right, margin), strict=True)}
        return {**means, "refused_batches": float(self.useful.refused)}

    def waited(self) -> float:
        return self.loader.waited

    def close(self) -> None:
        self.loader.close()


SETTINGS = Preference


def roles(settings: Preference, start: Start) -> dict[str, Role]:
    """The policy, and the frozen reference where the loss needs one that is not stored."""
    if settings.loss in ("cdpo", "robust") and not settings.smoothing:
        raise RecipeError(f"objective: loss: {settings.loss} needs smoothing > 0, the share of wrong judgements")
    if settings.loss == "kto" and settings.reference == "stored":
        raise RecipeError("objective: kto asks the reference about mismatched answers too: it cannot be stored")
    if settings.loss == "simpo" or settings.reference == "stored":
        return {"policy": pretrain.policy(start)}
    if settings.reference == "start" and start.recipe.continue_ is not None:
        raise RecipeError("objective.reference: start means start_from; with continue: name the reference's folder")
    lm = copy.deepcopy(start.lm) if settings.reference == "start" else load(settings.reference)
    policy = pretrain.policy(start)
    device = start.ranks.device
    return {"policy": policy, "reference": Frozen(PackedLM(lm, pick_attention(device)), device, policy.dtype)}


def objective(settings: Preference, start: Start) -> Objective:
    """Judged answers."""
    return PreferenceObjective(settings, start)


@torch.no_grad()
def write_reference(data: str, reference: str, out: str, *, micro_rows: int = 8) -> None:
    """Copy a data set of answers with a column `reference`: each answer's log-probability under a model, float64.

    For training without the reference in memory (`reference: stored`); the losses are the same as with it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    role = Frozen(PackedLM(load(reference), pick_attention(device)), device, torch.float32)
    aside = f"{out}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(data, aside)
    for split in (None, "validation"):
        whole = PackedRows(data)
        if split and not whole.has_split(split):
            continue
        source = PackedRows(data, split)
        part = source.about if split is None else source.about[split]
        values: list[list[float]] = []
        for first in range(0, source.rows, micro_rows):
            size = min(micro_rows, source.rows - first)
            (batch,) = shared_out(source, first, size, size).micro_batches
            found = log_probabilities(role, batch).double().cpu()
            for row, ends in zip(found, batch.extra["ends"], strict=True):
                values.append(row[ends > 0].tolist())
        done = 0
        for shard in part["shards"]:
            path = os.path.join(aside, shard["path"])
            table = pq.read_table(path)
            column = pa.array(values[done : done + table.num_rows], pa.list_(pa.float64()))
            done += table.num_rows
            if "reference" in table.column_names:
                table = table.drop_columns(["reference"])
            pq.write_table(table.append_column("reference", column), path, row_group_size=64, compression="zstd")
    about = json.loads(Path(aside, DATASET_FILE).read_text())
    about["reference"] = reference
    Path(aside, DATASET_FILE).write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)
