"""The one training loop. It does not know which algorithm runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.errors import RunError
from trainers.batch import StepRows
from trainers.checkpoint import CORNER, FINAL, KEPT, REGULAR, Place, Writer
from trainers.engine import Engine
from trainers.log import Beat, Log, Spikes
from trainers.objective import Blaming, Objective
from trainers.ranks import Ranks
from trainers.roles import Role
from trainers.schedule import Schedule


@dataclass(frozen=True)
class Length:
    """How far a run goes and what happens on the way."""

    steps: int
    schedule: Schedule
    validate_every: int = 0
    checkpoint_every: int = 0
    save: bool = True
    save_at: tuple[int, ...] = ()
    """Steps whose checkpoint stays, as a corner does."""
    positions: int = 0
    """Token positions per optimiser step over all ranks, padding included: what MFU counts."""
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    """Of one device, dense, in the training precision; 0 where nobody knows."""


def fit(
    objective: Objective,
    roles: Mapping[str, Role],
    length: Length,
    ranks: Ranks,
    place: Place,
    writer: Writer,
    beat: Beat,
    log: Log | None,
) -> int:
    """Train from `place` to the end: per optimiser step, count, backward over micro-batches, step, log, evaluate, save.
    Returns the steps done.

    Counts are summed over micro-batches and ranks before the first backward pass, so that every loss is a sum over
    the whole step divided by its whole count. A checkpoint that is due is saved as soon as the objective is where a run
    may begin: before the next step, or the next iteration.
    """
    trained = {name: role for name, role in roles.items() if isinstance(role, Engine)}
    corner = length.schedule.corner(length.steps)
    cursor, tokens = place.cursor, place.tokens
    clock, waited = time.perf_counter(), objective.waited()
    spikes = Spikes()
    batches = iter(objective.batches(roles))
    due: str | None = None
    for step in range(place.step, length.steps):
        writer.check()
        beat.at("data", step)
        rows = next(batches)
        if due and rows.begins:
            beat.at("checkpoint", step)
            there = replace(place, step=step, cursor=rows.first_row, tokens=tokens, kind=due, state=rows.state)
            _save(writer, trained, there)
            due = None
        beat.at("count", step)
        per_batch = [objective.counts(batch) for batch in rows.micro_batches]
        names = list(trained)
        learned = float(sum(batch.target_count() for batch in rows.micro_batches))
        *sums_of, learned = ranks.sum([*(sum(c[name] for c in per_batch) for name in names), learned])
        counts = dict(zip(names, sums_of, strict=True))
        for name, engine in trained.items():
            engine.begin(counts[name], len(rows.micro_batches))
        sums: dict[str, torch.Tensor] = {}
        for batch in rows.micro_batches:
            beat.at("forward", step)
            losses = objective.loss(roles, batch)
            beat.at("backward", step)
            for name, loss in losses.items():
                trained[name].backward(loss)
                for key, value in {"loss": loss.total, **loss.metrics}.items():
                    label = key if name == "policy" else f"{name}_{key}"
                    sums[label] = sums.get(label, 0) + value.detach().double()  # type: ignore[assignment]
        beat.at("step", step)
        rate = length.schedule.at(step, length.steps)
        stepped = {name: engine.step(rate) for name, engine in trained.items()}
        norms = {name: one.grad_norm for name, one in stepped.items()}
        line = _line(step + 1, sums, counts, norms, rate, ranks, rows)
        cursor, tokens = rows.next_row, tokens + int(learned)
        now, now_waited = time.perf_counter(), objective.waited()
        line |= _speed(length, ranks, learned, now - clock, now_waited - waited)
        line |= {"tokens": tokens, "row": cursor, **{k: v for one in stepped.values() for k, v in one.figures.items()}}
        line |= rows.figures
        clock, waited = now, now_waited
        spike = spikes.check(line["loss"])
        alarm: dict[str, Any] = {"step": step + 1, "alarm": spike, "rows": [rows.first_row, rows.next_row]}
        if spike and isinstance(objective, Blaming):
            alarm["worst"] = objective.worst_rows(roles, rows)
            clock = time.perf_counter()
        if log:
            log.write(line)
            if spike:
                log.write(alarm)
        last = step + 1 == length.steps
        if last or (length.validate_every and (step + 1) % length.validate_every == 0):
            beat.at("evaluate", step)
            _evaluate(objective, roles, step + 1, log)
            clock = time.perf_counter()
        kind = FINAL if last else CORNER if step + 1 == corner else KEPT if step + 1 in length.save_at else REGULAR
        if length.save and (kind != REGULAR or (length.checkpoint_every and (step + 1) % length.checkpoint_every == 0)):
            due = max(due or REGULAR, kind, key=(REGULAR, KEPT, CORNER, FINAL).index)  # one may still be waiting
        if last and due:
            beat.at("checkpoint", step)
            _save(
                writer, trained, replace(place, step=step + 1, cursor=cursor, tokens=tokens, kind=due, state=rows.state)
            )
    beat.at("checkpoint", length.steps)
    writer.wait()
    ranks.barrier()
    return length.steps - place.step


def _line(
    step: int,
    sums: dict[str, torch.Tensor],
    counts: dict[str, float],
    norms: dict[str, float],
    rate: float,
    ranks: Ranks,
    rows: StepRows,
) -> dict[str, Any]:
    """Global means of the step's sums. A collective."""
    labels = sorted(sums)
    totals = ranks.sum([float(sums[label]) for label in labels])
    line: dict[str, Any] = {"step": step}
    for name, norm in norms.items():
        line["grad_norm" if name == "policy" else f"{name}_grad_norm"] = norm
    for label, total in zip(labels, totals, strict=True):
        owner = next((name for name in counts if label.startswith(f"{name}_")), "policy")
        line[label] = total / counts.get(owner, next(iter(counts.values())))
    if not all(abs(value) < float("inf") for value in line.values()):
        raise RunError(
            f"step {step}: a loss or gradient is not finite ({line}); lower schedule.rate, or look at the rows of this "
            f"step, {rows.first_row} to {rows.next_row - 1}. The last checkpoint stays as it is"
        )
    line["rate"] = rate
    return line


def _speed(length: Length, ranks: Ranks, tokens: float, seconds: float, waited: float) -> dict[str, float]:
    speed = {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "wait_share": min(1.0, waited / seconds),
    }
    if length.peak_flops and length.flops_per_token:
        speed["mfu"] = length.positions * length.flops_per_token / seconds / ranks.world / length.peak_flops
    return speed


def _evaluate(objective: Objective, roles: Mapping[str, Role], step: int, log: Log | None) -> None:
    for role in roles.values():
        role.eval()
    figures = objective.evaluate(roles)
    for role in roles.values():
        role.train()
    if log and figures:
        log.write({"step": step, **figures})


def _save(writer: Writer, trained: Mapping[str, Engine], place: Place) -> None:
    counts = {name: engine.optimizer_steps() for name, engine in trained.items()}
    writer.save(trained, replace(place, optimizer_steps=counts))
