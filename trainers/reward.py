"""Reward models: a value for an answer, learned from rankings, from right or wrong, or step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from cluster.errors import DataError
from cluster.settings import Settings
from trainers.attention import masked_attention
from trainers.batch import Batch, PackedRows, StepRows, shared_out
from trainers.engine import Engine
from trainers.memory import Footprint
from trainers.model import PackedLM, load
from trainers.objective import Loss, Objective, Start, Useful
from trainers.preference import answer_lengths, pairs_of
from trainers.roles import Role, Want


class Reward(Settings):
    """Settings of the objective."""

    learn: Literal["ranking", "outcome", "process"] = Field(
        "ranking", description="ranking: pairs of one prompt; outcome: right or wrong answers; process: labelled steps"
    )
    pairs: Literal["all", "best_worst"] = Field("all", description="of the ranked answers of one prompt")
    margin: float = Field(0.0, ge=0, description="times the difference of two scores: how far apart values should be")
    centring: float = Field(0.0, ge=0, description="weight of (better + worse)², which keeps values around 0")
    head_std: float | None = Field(None, ge=0, description="initial weights of the head; None: 1 / √(hidden_size + 1)")
    validation_rows: int = Field(256, ge=0, description="rows of the held-out split per evaluation; 0: all of them")


# ---- losses ------------------------------------------------------------------------------------------------------


def ranking_loss(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0, centring: float = 0.0) -> Loss:
    """Σ −log σ(r_w − r_l − m) + c · (r_w + r_l)² over pairs, and their number.

    better, worse and margin [pairs]. Ouyang et al. 2022 (InstructGPT), eq. 1, with the margin of Touvron et al. 2023
    (Llama 2), eq. 2, and the centring of Eisenstein et al. 2023, section 3. All pairs of one prompt lie in one row.
    """
    losses = -logsigmoid(better - worse - margin) + centring * (better + worse).square()
    return Loss(losses.sum(), float(len(better)))


def label_loss(values: Tensor, right: Tensor) -> Loss:
    """Σ −[y log σ(v) + (1 − y) log σ(−v)] over answers (outcome) or ends of steps (process), and their number.

    values float and right bool, [items]. Lightman et al. 2023 (Let's verify step by step), section 2.
    """
    losses = binary_cross_entropy_with_logits(values, right.to(values.dtype), reduction="sum")
    return Loss(losses, float(len(values)))


# ---- the model ---------------------------------------------------------------------------------------------------


class PackedReward(PackedLM):
    """A transformers sequence classifier with one label, over packed rows: a value at every position."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        doc_index: Tensor,
        targets: Tensor,
        _want: Want = "values",
        parts: Tensor | None = None,
    ) -> Tensor:
        """All inputs [rows, seq_len] → values [rows, seq_len] of the text up to each position.

        No value depends on the targets, but for a tuning method that leaves rows without one out of its penalties.
        """
        lm: Any = self.lm
        # a method may have put positions in front
        hidden = self.decode(input_ids, position_ids, doc_index, targets, parts).last_hidden_state
        hidden = hidden[:, -input_ids.shape[1] :]
        return lm.score(hidden).squeeze(-1)  # type: ignore[no-any-return]


def classifier(lm: Any, head_std: float | None, seed: int) -> Any:
    """A sequence classifier with one label on a causal model's backbone; its head is drawn by `seed`.

    A classifier is given back as it is: a reward model that is trained further.
    """
    from transformers import AutoModelForSequenceClassification

    if hasattr(lm, "score"):
        return lm
    config = type(lm.config).from_dict({**lm.config.to_dict(), "id2label": {0: "reward"}, "label2id": {"reward": 0}})
    made: Any = AutoModelForSequenceClassification.from_config(config)
    made.model.load_state_dict(lm.get_decoder().state_dict())
    std = head_std if head_std is not None else 1 / math.sqrt(config.hidden_size + 1)
    with torch.no_grad():
        made.score.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    return made


def load_reward(folder: str, dtype: torch.dtype = torch.float32) -> PackedReward:
    """A reward model that a run exported, to be asked for values (as a frozen role: wrap it in `Frozen`)."""
    lm = load(folder, dtype)
    if not hasattr(lm, "score") or lm.config.num_labels != 1:
        raise DataError(
            f"{folder}: {type(lm).__name__} with {lm.config.num_labels} labels; a reward model has a head with one"
        )
    return PackedReward(lm)


def answer_values(values: Tensor, batch: Batch) -> Tensor:
    """The value at the last token of each document, by its length: [rows, seq_len] → [rows, documents].

    Never by looking for padding: an end-of-text token within an answer changes nothing. 0 where no document is.
    """
    ends = batch.extra["ends"].to(values.device)
    return values.gather(1, (ends - 1).clamp(min=0)) * (ends > 0)


def reward_loss(settings: Reward, values: Tensor, batch: Batch) -> Loss:
    """The loss of one micro-batch from values [rows, seq_len]; `accuracy` is summed over the same items."""
    if settings.learn == "ranking":
        row, better, worse = pairs_of(batch, settings.pairs)
        of_answers, scores = answer_values(values, batch), batch.extra["scores"]
        high, low = of_answers[row, better], of_answers[row, worse]
        margin = settings.margin * (scores[row, better] - scores[row, worse]).to(values)
        loss, right = ranking_loss(high, low, margin, settings.centring), high > low
    else:
        found, labels = labelled(settings, values, batch)
        loss, right = label_loss(found, labels), (found > 0) == labels
    return Loss(loss.total + 0.0 * values.sum(), loss.count, {"accuracy": right.double().sum()})


def labelled(settings: Reward, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(values, whether right) of all labelled answers or steps, both [items]."""
    if settings.learn == "process":
        labels = batch.extra["step_labels"].to(values.device)
        return values[labels > 0], labels[labels > 0] == 2
    labels = batch.extra["desirable"].to(values.device)
    return answer_values(values, batch)[labels > 0], labels[labels > 0] == 2


# ---- the report --------------------------------------------------------------------------------------------------

BINS = 10


class Report:
    """Sums over held-out items that add up over ranks: accuracy, calibration, length bias."""

    def __init__(self) -> None:
        self.sums = torch.zeros(12 + 3 * BINS, dtype=torch.float64)

    def add(self, confidence: Tensor, right: Tensor, longer: Tensor | None = None) -> None:
        """Confidence in the decision (0.5 to 1), whether it is right; of pairs, by how much the better is longer."""
        confidence, right = confidence.double().cpu(), right.double().cpu()
        bins = ((confidence - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
        for place, value in enumerate((torch.ones_like(right), confidence, right)):
            self.sums[12 + place * BINS : 12 + (place + 1) * BINS].scatter_add_(0, bins, value)
        self.sums[0] += len(right)
        self.sums[1] += right.sum()
        if longer is not None:
            for place, chosen in ((2, longer.cpu() > 0), (4, longer.cpu() < 0)):
                self.sums[place] += chosen.sum()
                self.sums[place + 1] += right[chosen].sum()

    def add_lengths(self, values: Tensor, lengths: Tensor) -> None:
        """Values and lengths in tokens of single answers, for their correlation."""
        x, y = lengths.double().cpu(), values.double().cpu()
        self.sums[6:12] += torch.stack([torch.tensor(float(len(x))), x.sum(), y.sum(), x @ x, y @ y, x @ y])

    def figures(self, sums: list[float]) -> dict[str, float]:
        """Accuracy with its 95 % interval (Wilson 1927), expected calibration error (Guo et al. 2017, eq. 3, over
        ten bins of confidence), accuracy where the better answer is longer and where it is shorter, and Pearson's
        correlation of value and length."""
        count, right = sums[0], sums[1]
        if not count:
            return {}
        share, z = right / count, 1.959964
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        found = {"accuracy": share, "accuracy_low": middle - half, "accuracy_high": middle + half}
        bins = [sums[12 + place * BINS : 12 + (place + 1) * BINS] for place in range(3)]
        found["calibration_error"] = sum(abs(sure - hit) for _, sure, hit in zip(*bins, strict=True)) / count
        for place, name in ((2, "accuracy_longer_better"), (4, "accuracy_shorter_better")):
            if sums[place]:
                found[name] = sums[place + 1] / sums[place]
        n, x, y, xx, yy, xy = sums[6:12]
        spread = (n * xx - x * x) * (n * yy - y * y)
        if spread > 0:
            found["length_correlation"] = (n * xy - x * y) / math.sqrt(spread)
        return found


# ---- the objective -----------------------------------------------------------------------------------------------


class RewardObjective:
    """Judged answers from a cursor on; the report on held-out prompts."""

    def __init__(self, settings: Reward, start: Start):
        self.settings, self.ranks = settings, start.ranks
        if not start.data.about.get("answers"):
            raise DataError(f"{start.data.folder}: no judged answers; make them with `corpusmill answers`")
        if settings.learn == "process" and "step_labels" not in start.data.read(0, 1).extra:
            raise DataError(
                f"{start.data.folder}: no labelled steps; give `steps` and `labels` to `corpusmill answers`"
            )
        self.loader = start.loader()
        nothing = {"ranking": "hold no two answers to compare", "outcome": "hold no label of an answer"}
        self.useful = Useful(
            self.loader, lambda batch: self.counts(batch)["policy"], start, nothing.get(settings.learn, "hold no step")
        )
        self.held_out: list[Batch] = []
        if start.data.has_split("validation"):
            split = PackedRows(start.data.folder, "validation")
            rows = min(settings.validation_rows or split.rows, split.rows)
            self.held_out = shared_out(
                split, 0, rows, start.recipe.micro_rows, rank=start.ranks.rank, world=start.ranks.world
            ).micro_batches

    def batches(self, roles: Mapping[str, Role]) -> Iterator[StepRows]:
        return iter(self.useful)

    def counts(self, batch: Batch) -> dict[str, float]:
        if self.settings.learn == "ranking":
            return {"policy": float(len(pairs_of(batch, self.settings.pairs).row))}
        key = "step_labels" if self.settings.learn == "process" else "desirable"
        return {"policy": float((batch.extra[key] > 0).sum())}

    def loss(self, roles: Mapping[str, Role], batch: Batch) -> dict[str, Loss]:
        values = roles["policy"](batch, "values")
        return {"policy": reward_loss(self.settings, values.float(), batch.to(values.device))}

    @torch.no_grad()
    def evaluate(self, roles: Mapping[str, Role]) -> dict[str, float]:
        """Held-out loss and the report. A collective."""
        if not self.held_out:
            return {}
        report, total, count = Report(), 0.0, 0.0
        for batch in self.held_out:
            values = roles["policy"](batch, "values").float()
            here = batch.to(values.device)
            loss = reward_loss(self.settings, values, here)
            total, count = total + float(loss.total), count + loss.count
            describe(self.settings, values, here, report)
        total, count, *sums = self.ranks.sum([total, count, *report.sums.tolist()])
        figures = {f"validation_{name}": value for name, value in report.figures(sums).items()}
        return {"validation": total / max(count, 1.0), **figures, "refused_batches": float(self.useful.refused)}

    def footprint(self, _roles: Mapping[str, Role], _tokens: int) -> Footprint:
        """One value per position: no logits."""
        return Footprint(0.0)

    def waited(self) -> float:
        return self.loader.waited

    def close(self) -> None:
        self.loader.close()


def describe(settings: Reward, values: Tensor, batch: Batch, report: Report) -> None:
    """Add one micro-batch to the report."""
    if settings.learn == "ranking":
        row, better, worse = pairs_of(batch, settings.pairs)
        of_answers, lengths = answer_values(values, batch), answer_lengths(batch)
        gap = of_answers[row, better] - of_answers[row, worse]
        report.add(torch.sigmoid(gap.abs()), gap > 0, lengths[row, better] - lengths[row, worse])
        there = batch.extra["ends"] > 0
        report.add_lengths(of_answers[there], lengths[there])
    else:
        found, labels = labelled(settings, values, batch)
        report.add(torch.sigmoid(found.abs()), (found > 0) == labels)


SETTINGS = Reward


def roles(settings: Reward, start: Start) -> dict[str, Role]:
    """The reward model, which is the policy of this run: it is trained."""
    packed = PackedReward(
        classifier(start.lm, settings.head_std, start.recipe.seed),
        masked_attention(start.ranks.device, start.engine.attention),
    )
    if start.recipe.peft is not None or start.recipe.prune is not None:
        from trainers.peft.tune import prepare

        prepare(packed, start.recipe, start.engine)
    return {"policy": Engine(packed, start.engine, start.ranks, start.recipe.micro_rows)}


def objective(settings: Reward, start: Start) -> Objective:
    """Judged answers."""
    return RewardObjective(settings, start)
