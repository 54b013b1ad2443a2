"""Tables of runs: CSV or JSONL with columns for parameters, tokens or compute, and loss, under their usual names."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest

NAMES = {
    "parameters": ("parameters", "params", "params_N", "Model Size", "N", "n"),
    "tokens": ("tokens", "tokens_D", "D", "d"),
    "flops": ("flops", "Training FLOP", "C", "compute"),
    "loss": ("loss", "val_loss", "validation"),
    "unique_tokens": ("unique_tokens", "unique"),
}
"""Column names that are understood."""


@dataclass(frozen=True)
class Runs:
    """A table of runs as arrays: parameters, tokens (flops / 6 N where it has no tokens), loss."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray
    unique_tokens: np.ndarray
    """Different tokens among those trained on; all of them where the table does not say."""

    def __len__(self) -> int:
        return len(self.loss)


def read_rows(path: str, where: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header, or of JSONL; `where` keeps those with COLUMN=VALUE, for each one given.

    Raises DataError for a file that is neither, or has no rows; RecipeError for a condition on a column it lacks.
    """
    rows: list[dict[str, Any]]
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if path.endswith((".jsonl", ".json")):
            rows = [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines(), strict=True))
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: neither CSV with a header nor JSONL (by the ending .jsonl): {error}") from None
    if not rows:
        raise DataError(f"{path}: no runs in it")
    for condition in where:
        name, sign, value = condition.partition("=")
        if not sign or name not in rows[0]:
            raise RecipeError(
                f"--where {condition}: expected COLUMN=VALUE with a column of {path}"
                f"{nearest(name, filter(None, rows[0]))}"
            )
        found = sorted({str(row.get(name)) for row in rows})
        rows = [row for row in rows if str(row.get(name)) == value]
        if not rows:
            raise RecipeError(f"--where {condition}: no run with it; {name} is one of {', '.join(found[:12])}")
    return rows


def number(path: str, position: int, row: dict[str, Any], column: str, *, positive: bool = False) -> float:
    """A finite number from a cell. Raises DataError with the file, the run's number and what is there."""
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}, run {position}: no number as {column}: {row}") from None
    if not np.isfinite(value) or (positive and value <= 0):
        wanted = "a positive number" if positive else "a finite number"
        raise DataError(f"{path}, run {position}: {column} is {value:g}, {wanted} was expected; leave the run out")
    return value


def read_runs(path: str, where: Sequence[str] = ()) -> Runs:
    """Runs from a table with columns for parameters, loss, and tokens or flops, all positive. Raises DataError."""
    rows = read_rows(path, where)
    columns = {key: next((name for name in names if name in rows[0]), None) for key, names in NAMES.items()}
    wanted = [key for key in ("parameters", "loss") if columns[key] is None]
    if columns["tokens"] is None and columns["flops"] is None:
        wanted.append("tokens or flops")
    if wanted:
        raise DataError(
            f"{path}: no column for {', '.join(wanted)}; it has {', '.join(filter(None, rows[0]))}. Understood names: "
            f"{'; '.join(', '.join(NAMES[key]) for name in wanted for key in name.split(' or '))}"
        )

    def column(key: str) -> np.ndarray:
        name = columns[key]
        assert name is not None
        return np.array([number(path, place, row, name, positive=True) for place, row in enumerate(rows, 1)])

    parameters, loss = column("parameters"), column("loss")
    tokens = column("tokens") if columns["tokens"] else column("flops") / 6 / parameters
    flops = column("flops") if columns["flops"] else 6 * parameters * tokens
    unique = np.minimum(column("unique_tokens"), tokens) if columns["unique_tokens"] else tokens
    return Runs(parameters, tokens, loss, flops, unique)
