"""Distillation: a student learns what its teachers expect, how they see it, and how they relate examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cluster.errors import DataError, RecipeError
from trainers.architecture import head_dim
from trainers.attention import Attention, masked_attention
from trainers.batch import IGNORE, Batch, collate
from trainers.divergence import Kind, bucketed, confidence, divergence, log_probabilities
from trainers.engine import Engine
from trainers.memory import Footprint, asked_bytes
from trainers.model import PackedLM, load
from trainers.objective import Loss, Objective, Start
from trainers.relations import (
    angle_loss,
    attention_losses,
    distance_loss,
    feature_losses,
    items_of,
    value_losses,
)
from trainers.roles import Frozen, Role
from trainers.sft import Sft, SftObjective
from trainers.teach import check_vocabulary

CHUNK = 1024
"""Tokens whose distributions exist at once: some ten float32 of the vocabulary's width each."""


class Distill(Sft):
    """Settings of the objective. Rows and targets are those of `sft`."""

    train_on: Literal["responses", "everything"] = Field(
        "everything", description="see sft; everything: plain text too"
    )
    teachers: dict[str, float] = Field(default_factory=dict, description="transformers folders with their weights")
    stored: bool = Field(
        False, description="the teacher's likeliest tokens are columns of the data (`corpusmill teach`)"
    )
    divergence: Kind = Field("forward", description="forward: KL(teacher ‖ student), reverse: the other way; or jsd")
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: weight of the teacher in the mean")
    temperature: float = Field(
        1.0, gt=0, description="both distributions are softened by it, the loss times its square"
    )
    hard: float = Field(0.0, ge=0, le=1, description="weight of −log p(target); the divergence has the rest")
    combine: Literal["losses", "average"] = Field(
        "losses", description="several teachers: the mean of their losses, or the loss from their averaged logits"
    )
    trust: Literal["fixed", "confidence", "routed"] = Field(
        "fixed",
        description="teachers' weights: as given; per token by how well each predicts it; or data set n of a mixture "
        "learns from teacher n alone",
    )
    features: float = Field(0.0, ge=0, description="weight of the distance of hidden states")
    feature_loss: Literal["mse", "cosine"] = Field("mse", description="distance of a projected state from a teacher's")
    layers: dict[int, int] = Field(
        default_factory=dict, description="student's block: teacher's block (1 is the first); empty: evenly spread"
    )
    distance: float = Field(0.0, ge=0, description="weight of RKD's distances between the documents of a row")
    angle: float = Field(0.0, ge=0, description="weight of RKD's angles between the documents of a row")
    attention_relation: float = Field(0.0, ge=0, description="weight of MiniLM's distance of attention in one block")
    value_relation: float = Field(0.0, ge=0, description="weight of MiniLM's distance of value relations in one block")
    relation_blocks: tuple[int, int] | None = Field(
        None, description="MiniLM: the student's and the teachers' block (1 is the first); None: the last ones"
    )
    relation_heads: int | None = Field(
        None, gt=0, description="MiniLMv2: all heads split anew into so many; None: both models' own, if equally many"
    )
    most_documents: int = Field(32, gt=1, description="documents of a row that are related to each other")

    def attends(self) -> bool:
        """Whether queries, keys and values count."""
        return self.attention_relation > 0 or self.value_relation > 0

    def relations(self) -> bool:
        """Whether relations between documents count."""
        return self.distance > 0 or self.angle > 0


# ---- models ------------------------------------------------------------------------------------------------------


class PackedStates(PackedLM):
    """A language model that also tells its states: logits and hidden states of the positions that have a target."""

    def __init__(
        self,
        lm: Any,
        attention: Attention,
        blocks: Sequence[int],
        widths: Sequence[int] = (),
        seed: int = 0,
        attends: int | None = None,
    ):
        """`blocks`: whose outputs are told, from 1 on. `widths`: the student's are projected to them, one for each.
        `attends`: the block whose queries, keys and values are told."""
        super().__init__(lm, attention)
        self.blocks, self.attends = list(blocks), attends
        width = lm.config.hidden_size
        self.projections = nn.ModuleList(nn.Linear(width, wide, bias=False) for wide in widths)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for one in self.projections:
                one.weight.normal_(0.0, width**-0.5, generator=random)  # type: ignore[operator, union-attr]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        doc_index: Tensor,
        targets: Tensor,
        want: Any = "states",
        parts: Tensor | None = None,
    ) -> Any:
        """As PackedLM; with want "states" a tuple, all of the n positions that have a target, in their order:
        logits [n, vocabulary], last hidden state [n, width], then one [n, width] for each of `blocks`, projected; and
        of whole rows queries, keys and values of the block `attends`, [rows, heads, seq_len, width]."""
        if want != "states":
            return super().forward(input_ids, position_ids, doc_index, targets, want, parts)
        lm: Any = self.lm
        layer = lm.get_decoder().layers[self.attends - 1].self_attn if self.attends else None
        if layer is not None:
            layer.told = []
        packed = (input_ids, position_ids, doc_index, targets, parts)
        told = self.decode(*packed, output_hidden_states=bool(self.blocks))
        heard = [x[:, :, -input_ids.shape[1] :] for x in layer.told] if layer is not None else []
        if layer is not None:
            layer.told = None
        used = targets != IGNORE
        length = input_ids.shape[1]  # a tuning method may have put positions in front
        last = told.last_hidden_state[:, -length:][used]
        states = [told.hidden_states[block][:, -length:][used] for block in self.blocks]
        if len(self.projections):
            states = [layer(state) for layer, state in zip(self.projections, states, strict=True)]
        return (lm.get_output_embeddings()(last), last, *states, *heard)


def layer_map(settings: Distill, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's block, teacher's block), from 1 on, for models of so many blocks. Raises RecipeError.

    Evenly: block i of n stands for block round(i · N / n), so the last stands for the last.
    """
    if not settings.features:
        return []
    chosen = settings.layers or {i: max(1, round(i * teacher / student)) for i in range(1, student + 1)}
    for mine, other in chosen.items():
        if not (1 <= mine <= student and 1 <= other <= teacher):
            raise RecipeError(
                f"objective.layers: {mine}: {other}, but the student has {student} blocks and the teacher {teacher}"
            )
    return sorted(chosen.items())


def relation_blocks(settings: Distill, student: Any, teacher: Any) -> tuple[int | None, int | None]:
    """Whose attention is compared, of two transformers configurations; None where nobody's is. Raises RecipeError."""
    if not settings.attends():
        return None, None
    pair = settings.relation_blocks or (student.num_hidden_layers, teacher.num_hidden_layers)
    for who, config, block in (("student", student, pair[0]), ("teacher", teacher, pair[1])):
        if not 1 <= block <= config.num_hidden_layers:
            raise RecipeError(
                f"objective.relation_blocks: block {block}, but the {who} has {config.num_hidden_layers} blocks"
            )
        width = config.num_key_value_heads * head_dim(config)
        if settings.relation_heads and width % settings.relation_heads:
            raise RecipeError(
                f"objective.relation_heads: {settings.relation_heads} do not divide the {who}'s {width} values"
            )
    counts = [(one.num_attention_heads, one.num_key_value_heads) for one in (student, teacher)]
    if settings.relation_heads is None and (counts[0] != counts[1] or counts[0][0] != counts[0][1]):
        raise RecipeError(
            f"objective: the student has {counts[0]} query and key heads, the teacher {counts[1]}; set relation_heads "
            "to a number into which the heads of both can be split anew"
        )
    return pair


# ---- losses ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class States:
    """What a model says of n positions: logits, last hidden state, states of chosen blocks."""

    logits: Tensor
    last: Tensor
    blocks: list[Tensor]
    heads: list[Tensor] = field(default_factory=list)
    """Queries, keys and values of one block, of whole rows: [rows, heads, seq_len, width] each; or nothing."""


@dataclass(frozen=True)
class Stored:
    """A teacher's likeliest tokens: ids int64 [n, k], and log p of them and of all others together [n, k + 1]."""

    ids: Tensor
    log_p: Tensor


def teacher_weights(
    settings: Distill, logits: Sequence[Tensor], targets: Tensor, weights: Tensor, parts: Tensor | None
) -> Tensor:
    """[n, teachers], each row with sum 1, float32. `parts` int64 [n]: the data set of each token."""
    fixed = (weights / weights.sum()).to(targets.device, torch.float32).expand(len(targets), -1)
    if settings.trust == "fixed" or len(logits) == 1:
        return fixed
    if settings.trust == "routed":
        assert parts is not None
        return nn.functional.one_hot(parts, len(logits)).float()
    losses = [
        torch.cat([
            -log_probabilities(one[i : i + CHUNK]).gather(1, targets[i : i + CHUNK, None]).squeeze(1)
            for i in range(0, len(targets), CHUNK)
        ] or [fixed[:, 0]])
        for one in logits
    ]  # fmt: skip
    return confidence(torch.stack(losses, 1).float(), fixed)


def soft_and_hard(
    settings: Distill, student: Tensor, targets: Tensor, weights: Tensor, stored: Stored | None, *teachers: Tensor
) -> tuple[Tensor, Tensor]:
    """Per token (T² · D(teachers, student), −log p(target)), both [n].

    student and teachers: logits [n, vocabulary]; padding of a vocabulary beyond the narrowest is left out of D.
    Hinton et al. 2015, section 2: T² keeps the size of the gradient.
    """
    hard = -log_probabilities(student).gather(1, targets[:, None]).squeeze(1)
    t = settings.temperature
    if stored is not None:
        mine = bucketed(log_probabilities(student, t), stored.ids)
        return t * t * divergence(mine, stored.log_p.to(mine), settings.divergence, settings.beta), hard
    width = min(student.shape[-1], *(one.shape[-1] for one in teachers))
    mine = log_probabilities(student[:, :width], t)
    if settings.combine == "average":
        mean = sum(weights[:, n, None] * one[:, :width].float() for n, one in enumerate(teachers))
        soft = divergence(mine, log_probabilities(mean, t).to(mine), settings.divergence, settings.beta)  # type: ignore[arg-type]
    else:
        soft = mine.new_zeros(len(mine))
        for n, one in enumerate(teachers):
            theirs = log_probabilities(one[:, :width], t).to(mine)
            soft = soft + weights[:, n] * divergence(mine, theirs, settings.divergence, settings.beta)
    return t * t * soft, hard


def distillation_loss(
    settings: Distill,
    student: States,
    teachers: Sequence[States],
    batch: Batch,
    weights: Tensor,
    stored: Stored | None = None,
) -> Loss:
    """Σ over target positions of (1 − h) · T² D + h · −log p(target) + features + relations, and their number.

    `student.blocks` holds the projected states for teacher 0's blocks, then teacher 1's, … . A relation of a row's
    documents counts once for every target of the row, so that long rows and short ones weigh as their tokens do.
    """
    used = batch.targets != IGNORE
    targets = batch.targets[used]
    parts = batch.parts
    row, document = (torch.arange(batch.rows, device=used.device)[:, None].expand_as(used))[used], batch.doc_index[used]
    logits = [one.logits for one in teachers]
    shares = teacher_weights(settings, logits, targets, weights, None if parts is None else parts.to(row)[row])
    soft = hard = student.logits.sum().float() * 0.0
    for i in range(0, len(targets), CHUNK):
        part = slice(i, i + CHUNK)
        piece = Stored(stored.ids[part], stored.log_p[part]) if stored is not None else None
        given = (student.logits[part], targets[part], shares[part], piece, *(one[part] for one in logits))
        found = checkpoint(soft_and_hard, settings, *given, use_reentrant=False)
        soft, hard = soft + found[0].sum(), hard + found[1].sum()
    total = (1 - settings.hard) * soft + settings.hard * hard
    metrics = {"soft": soft.detach(), "hard": hard.detach()}
    place = 0
    if settings.features:
        apart = torch.zeros_like(soft)
        for n, teacher in enumerate(teachers):
            for theirs in teacher.blocks:
                losses = feature_losses(student.blocks[place], theirs, settings.feature_loss)
                apart = apart + (shares[:, n] * losses).sum() / len(teacher.blocks)
                place += 1
        total = total + settings.features * apart
        metrics["features"] = apart.detach()
    if settings.relations():
        related = torch.zeros_like(soft)
        mine = items_of(student.last, row, document.long(), settings.most_documents)
        for n, teacher in enumerate(teachers):
            theirs_of = items_of(teacher.last, row, document.long(), settings.most_documents)
            for number, ours, theirs in zip(row.unique().tolist(), mine, theirs_of, strict=True):
                loss = settings.distance * distance_loss(ours, theirs) if settings.distance else 0.0
                if settings.angle:
                    loss = loss + settings.angle * angle_loss(ours, theirs)
                related = related + shares[row == number, n].sum() * loss
        total = total + related
        metrics["relations"] = related.detach()
    if settings.attends():
        attended = torch.zeros_like(soft)
        for n, teacher in enumerate(teachers):
            for weight, losses_of in (
                (settings.attention_relation, attention_losses), (settings.value_relation, value_losses),
            ):  # fmt: skip
                if weight:
                    heads = settings.relation_heads or student.heads[0].shape[1]
                    losses = losses_of(student.heads, teacher.heads, batch.doc_index, heads)[used]
                    attended = attended + weight * (shares[:, n] * losses).sum()
        total = total + attended
        metrics["attention"] = attended.detach()
    zero = 0.0 * (student.last.sum() + sum(one.sum() for one in student.blocks))  # every weight has a gradient
    return Loss(total + zero, float(len(targets)), metrics)


# ---- the objective -----------------------------------------------------------------------------------------------


class DistillObjective(SftObjective):
    """Rows from a cursor on, as for instruction tuning; teachers are asked live, or their stored tokens are read."""

    def __init__(self, settings: Distill, start: Start):
        about: dict[str, Any] = getattr(start.data, "about", {}).get("teacher") or {}
        if settings.stored and not about:
            raise DataError(f"{start.data.folder}: no column of a teacher; `corpusmill teach` writes one")
        if settings.stored and about["temperature"] != settings.temperature:
            raise DataError(
                f"{start.data.folder}: the teacher was written at temperature {about['temperature']:g}, the objective "
                f"has {settings.temperature:g}; the two must be equal"
            )
        super().__init__(settings, start)
        self.distill = settings
        self.weights = torch.tensor(list(settings.teachers.values()) or [1.0], dtype=torch.float64)

    def footprint(self, roles: Mapping[str, Role], tokens: int) -> Footprint:
        """Logits and states of the student and of every teacher, of all positions that have a target (as many as in
        the fullest of the first micro-batches); their gradients, or the chunk whose distributions are computed again.

        Float32 of a chunk's logits at once, counted by what is alive: 6 and for each teacher 1.5, by JSD 6; of the
        mean of all teachers one more; with stored ones 7.
        """
        settings, policy = self.distill, cast(Engine, roles["policy"])
        data, rows = self.loader.data, self.loader.micro_rows
        batches = [self._chosen(collate(data.read(first, rows))) for first in range(0, 8 * rows, rows)]
        n = max(batch.target_count() for batch in batches)
        wide = policy.compute_dtype.itemsize
        config, width = policy.module.lm.config, policy.module.lm.config.vocab_size
        kept = wide * n * (width + config.hidden_size)
        asked = 0.0
        frozen: list[Any] = [role.model for role in roles.values() if isinstance(role, Frozen)]
        for teacher in frozen:
            of_it, size = teacher.lm.config, next(teacher.parameters()).element_size()
            states = of_it.hidden_size * (1 + len(teacher.blocks))
            kept += size * n * (of_it.vocab_size + states)
            asked = max(asked, asked_bytes(teacher, tokens, chunk=0))
        kept += wide * n * sum(config.hidden_size + layer.out_features for layer in policy.module.projections)
        each = 6.0 if settings.divergence == "jsd" else 1.5
        pieces = 6.0 + each * len(settings.teachers)
        if settings.combine == "average":
            pieces = 7.0 + each
        if settings.stored:
            pieces = 7.0
        logits = float(wide * n * width)
        chunk = 4.0 * min(CHUNK, n) * width * pieces + (logits if n > CHUNK else 0.0)
        return Footprint(kept + max(2 * logits, chunk, asked))

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        heads = 3 if self.distill.attends() else 0
        student = _states(roles["policy"], batch, heads)
        teachers = [_states(roles[f"teacher_{n}"], batch, heads) for n in range(len(self.distill.teachers))]
        there = batch.to(student.logits.device)
        stored = _stored(there) if self.distill.stored else None
        return {"policy": distillation_loss(self.distill, student, teachers, there, self.weights, stored)}


def _states(role: Any, batch: Batch, heads: int) -> States:
    logits, last, *rest = role(batch, "states")
    blocks = len(rest) - heads
    return States(logits, last, rest[:blocks], rest[blocks:])


def _stored(batch: Batch) -> Stored:
    used = batch.targets != IGNORE
    shape = (*batch.targets.shape, -1)
    ids, log_p = batch.extra["teacher_ids"].reshape(shape)[used], batch.extra["teacher_log_p"].reshape(shape)[used]
    return Stored(ids.long(), log_p.float())


SETTINGS = Distill


def roles(settings: Distill, start: Start) -> dict[str, Role]:
    """The student, which is this run's policy, and its frozen teachers: teacher_0, teacher_1, …"""
    if bool(settings.teachers) == settings.stored:
        raise RecipeError("objective: give teachers (folders with weights), or stored: true, and not both")
    if settings.stored and (settings.features or settings.relations() or settings.attends()):
        raise RecipeError("objective: features and relations need a live teacher; stored ones have logits only")
    if settings.attends() and (start.engine.compile or start.engine.recompute != "none"):
        raise RecipeError("objective: attention_relation and value_relation need compile: false and recompute: none")
    if settings.teachers and min(settings.teachers.values()) <= 0:
        raise RecipeError(f"objective: teachers' weights must be positive, found {settings.teachers}")
    if settings.trust == "routed":
        parts = len(getattr(start.data, "parts", [0]))
        if parts != len(settings.teachers) or parts < 2:
            raise RecipeError(
                f"objective: trust: routed needs one teacher for each data set, found {len(settings.teachers)} "
                f"teachers and {parts} data sets"
            )
    device = start.ranks.device
    attention = masked_attention(device, start.engine.attention)
    found, blocks, widths = {}, [], []
    mine = None
    for folder in settings.teachers:
        check_vocabulary(folder, start.data)
        lm = load(folder)
        pairs = layer_map(settings, start.lm.config.num_hidden_layers, lm.config.num_hidden_layers)
        blocks += [mine for mine, _ in pairs]
        widths += [lm.config.hidden_size] * len(pairs)
        mine, other = relation_blocks(settings, start.lm.config, lm.config)
        found[folder] = PackedStates(lm, attention, [other for _, other in pairs], attends=other)
    student = PackedStates(start.lm, attention, blocks, widths, start.recipe.seed, mine)
    if start.recipe.peft is not None or start.recipe.prune is not None:
        from trainers.peft.tune import prepare

        prepare(student, start.recipe, start.engine)
    policy = Engine(student, start.engine, start.ranks, start.recipe.micro_rows)
    frozen = {f"teacher_{n}": Frozen(one, device, policy.dtype) for n, one in enumerate(found.values())}
    return {"policy": policy, **frozen}


def objective(settings: Distill, start: Start) -> Objective:
    """Packed rows with teachers."""
    return DistillObjective(settings, start)
