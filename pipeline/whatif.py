"""Other thresholds on stored scores: what a change would keep, without computing any score again.

Needs a run with `keep_scores: true`. Filters that stand next to each other in a recipe were scored on every document
of their group, so a change of any of their thresholds is decided exactly. Documents that only then get past a group
have no scores from the steps behind it: they are counted as newly kept by the group.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import RecipeError
from cluster.settings import assign
from pipeline import manifest
from pipeline.process import prefixes
from pipeline.recipe import Recipe, from_mapping
from pipeline.step import Documents, Filter

Counts = dict[tuple[str, str], list[int]]
"""(source, language): [documents scored, kept before, kept now]."""


def whatif(run: str, assignments: Sequence[str]) -> list[str]:
    """Lines that say what the settings would change in a run's folder. Raises RecipeError without stored scores."""
    import yaml

    run = storage.absolute(run)
    raw = yaml.safe_load(storage.read_bytes(storage.join(run, "recipe.yaml")))
    before = from_mapping(raw, "recipe.yaml")
    if not before.keep_scores:
        raise RecipeError(f"{run}: this run kept no scores; run the recipe again with --set keep_scores=true")
    for assignment in assignments:
        assign(raw, assignment)
    after = from_mapping(raw, "recipe.yaml")
    _refuse_what_scores_cannot_tell(before, after)
    lines: list[str] = []
    for first, files in _groups(run):
        filters = [_filters_from(recipe, first) for recipe in (before, after)]
        if filters[0] == filters[1]:
            continue
        lines += _group_lines(filters[1], *_count(filters[0], filters[1], files))
    return lines or ["nothing changes: no filter with stored scores has another setting"]


def _refuse_what_scores_cannot_tell(before: Recipe, after: Recipe) -> None:
    """Raise RecipeError for changes of other things than limits: only a run can tell what they do."""
    wrong = [name for name in Recipe.model_fields if name != "steps" and getattr(before, name) != getattr(after, name)]
    for old, new in zip(before.steps, after.steps, strict=True):
        for field in type(old).model_fields:
            if getattr(old, field) == (value := getattr(new, field)):
                continue
            changed = old.model_copy(update={field: value})
            if (
                not isinstance(old, Filter)
                or not isinstance(changed, Filter)
                or not (field in old.bounds or (field != "variant" and changed.rules() != old.rules()))
            ):
                wrong.append(f"{old.step_name()}.{field}")
    if wrong:
        raise RecipeError(f"{', '.join(wrong)}: no limit on a stored score, so only a run tells what the change does")


def _groups(run: str) -> Iterator[tuple[int, list[str]]]:
    """(position in the recipe of a group's first filter, its score files) for every scored group of the run."""
    record = json.loads(storage.read_bytes(storage.join(run, "run.json")))
    position = 0
    for public in record["stages"]:
        path = storage.join(run, "stages", public["folder"], "stage.json")
        stage = manifest.load(storage.read_bytes(path), run)
        entry = 1 if len(stage["steps"]) > stage["fused"] else 0
        files: dict[int, list[str]] = {}
        for of_task in stage["files"].get("scores", []):
            for number, path in of_task.items():
                files.setdefault(int(number), []).append(path)
        for number in sorted(files):
            yield position + entry + number, files[number]
        position += len(stage["steps"])


def _filters_from(recipe: Recipe, first: int) -> list[Filter]:
    filters: list[Filter] = []
    for step in recipe.steps[first:]:
        if not isinstance(step, Filter):
            break
        filters.append(step)
    return filters


def _count(before: list[Filter], after: list[Filter], files: list[str]) -> tuple[Counts, Counter[str], Counter[str]]:
    counts: Counts = {}
    reasons: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for path in files:
        with storage.open_read(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(65_536):
                fates = [_judge(filters, batch, told) for filters, told in zip((before, after), reasons, strict=True)]
                for row, key in enumerate(_keys(batch)):
                    cell = counts.setdefault(key, [0, 0, 0])
                    cell[0] += 1
                    cell[1] += int(fates[0][row])
                    cell[2] += int(fates[1][row])
    return counts, *reasons


def _judge(filters: list[Filter], batch: pa.RecordBatch, reasons: Counter[str]) -> np.ndarray:
    """Which rows of a score table stay (boolean); counts the reasons of the others."""
    alive = np.ones(batch.num_rows, bool)
    for step, prefix in zip(filters, prefixes(filters), strict=True):
        scores = {
            name.removeprefix(prefix): batch.column(name).to_numpy(zero_copy_only=False)
            for name in batch.schema.names
            if name.startswith(prefix)
        }
        try:
            verdict = step.verdict(Documents(batch), scores)
        except KeyError as missing:
            raise RecipeError(f"{prefix[:-1]}: the run stored no score {missing}; only a run tells") from None
        goes = alive & np.array([reason is not None for reason in verdict.reason], bool)
        reasons.update(f"{prefix}{reason}" for reason in verdict.reason[goes])
        alive &= ~goes
    return alive


def _keys(batch: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    columns: list[list[Any]] = []
    for name in ("source", "language"):
        known = name in batch.schema.names
        columns.append(batch.column(name).to_pylist() if known else [None] * batch.num_rows)
    return ((source or "", language or "?") for source, language in zip(*columns, strict=True))


def _group_lines(filters: list[Filter], counts: Counts, before: Counter[str], after: Counter[str]) -> list[str]:
    names = ", ".join(step.step_name() for step in filters)
    lines = [names, f"  {'source':<20} {'language':<9} {'scored':>10} {'kept':>10} {'would keep':>11} {'change':>8}"]
    total = np.array(list(counts.values())).sum(0).tolist() if counts else [0, 0, 0]
    for (source, language), (scored, kept, now) in sorted(counts.items(), key=lambda item: -item[1][0]):
        lines.append(f"  {source:<20} {language:<9} {scored:>10,} {kept:>10,} {now:>11,} {now - kept:>+8,}")
    scored, kept, now = total
    lines.append(f"  {'all':<20} {'':<9} {scored:>10,} {kept:>10,} {now:>11,} {now - kept:>+8,}")
    for reason in sorted(before | after, key=lambda reason: -abs(after[reason] - before[reason])):
        if before[reason] != after[reason]:
            lines.append(f"  {reason}: {before[reason]:,} → {after[reason]:,}")
    return lines
