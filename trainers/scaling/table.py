"""Tables of runs, CSV, JSONL or Parquet: columns for parameters, tokens or compute, and loss, by their usual names."""

from __future__ import annotations

import csv
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError, RecipeError, nearest

NAMES = {
    "parameters": ("parameters", "params", "params_N", "num_params", "n_params", "model_size", "N"),
    "tokens": ("tokens", "tokens_D", "num_tokens", "train_tokens", "training_tokens", "pretraining_data_size", "D"),
    "flops": ("flops", "training_flop", "training_flops", "compute", "C"),
    "loss": ("loss", "val_loss", "validation_loss", "validation", "eval_loss", "test_loss", "L"),
    "unique_tokens": ("unique_tokens", "unique"),
    "epochs": ("epochs",),
}
"""Column names that are understood: in any case, with spaces or _, and with a unit as in 'Model Size (B)'; one letter
counts where no longer name is there."""

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """A table of runs as arrays: parameters, tokens (flops / 6 N where it has no tokens), loss."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray
    unique_tokens: np.ndarray
    """Different tokens among those trained on; all of them where the table does not say."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column of the table each was read from."""
    repeats: int = 0
    """Rows that were equal to another one in every cell, and are left out."""

    def __len__(self) -> int:
        return len(self.loss)


def read_rows(path: str, where: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of CSV (by comma, semicolon or tab, with a header), JSONL, a JSON list or Parquet.

    Nested values get dotted names: losses.0.loss. `where` keeps the rows with COLUMN=VALUE (or !=, <, <=, >, >=), for
    each one given. Raises DataError for a file that is none of these, or has no rows; RecipeError for a condition on a
    column it lacks.
    """
    try:
        rows = [_flat(row) for row in _read(path)]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:  # Arrow's and JSON's errors are ValueErrors
        raise DataError(
            f"{path}: neither CSV with a header nor JSONL, a JSON list or Parquet (.jsonl, .json, .parquet): {error}"
        ) from None
    if not rows:
        raise DataError(f"{path}: no runs in it")
    for condition in where:
        rows = _chosen(rows, condition, path)
    return rows


def _read(path: str) -> Sequence[Mapping[str, Any]]:
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    text = Path(path).read_text(encoding="utf-8-sig")
    if path.endswith((".jsonl", ".ndjson", ".json")):
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    between = max(",;\t", key=lines[0].count)
    names, *cells = csv.reader(lines, delimiter=between, skipinitialspace=True, strict=True)
    names = [name.strip() for name in names]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise ValueError(f"two columns are called {twice}")
    return [dict(zip(names, row, strict=False)) for row in cells]


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """
    >>> _flat({"n": 1, "losses": [{"loss": 2.5}], "tasks": {"copa": 0.6}})
    {'n': 1, 'losses.0.loss': 2.5, 'tasks.copa': 0.6}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        inner = {str(place): one for place, one in enumerate(value)} if isinstance(value, list) else value
        found |= _flat(inner, f"{before}{name}.") if isinstance(inner, Mapping) else {f"{before}{name}": value}
    return found


def _chosen(rows: list[dict[str, Any]], condition: str, path: str) -> list[dict[str, Any]]:
    """The rows that meet COLUMN=VALUE; compared as numbers where both are."""
    columns = columns_of(rows)
    parts = re.fullmatch(r"(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*)", condition)
    if not parts or parts[1] not in columns:
        raise RecipeError(
            f"--where {condition}: expected COLUMN=VALUE (or !=, <, <=, >, >=) with a column of {path}"
            f"{nearest(parts[1] if parts else condition, columns)}"
        )
    name, sign, wanted = parts.groups()

    def meets(value: Any) -> bool:
        try:
            return bool(SIGNS[sign](float(value), float(wanted)))
        except (TypeError, ValueError):
            return sign in ("=", "!=") and bool(SIGNS[sign](str(value), wanted))

    found = [row for row in rows if meets(row.get(name))]
    if not found:
        seen = sorted({str(row.get(name)) for row in rows})
        raise RecipeError(f"--where {condition}: no run with it; {name} is one of {', '.join(seen[:12])}")
    return found


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all columns, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row if name))


def find(columns: Sequence[str], key: str, named: Mapping[str, str] | None = None) -> tuple[str, float] | None:
    """The column for parameters, tokens, flops, loss, unique_tokens or epochs, and the unit of its numbers.

    `named` says which it is ({"loss": "losses.1.loss"}). Raises RecipeError where several could be meant, or the named
    one is absent.

    >>> find(["Model", "Model Size (B)", "FLOPs (1E21)"], "flops")
    ('FLOPs (1E21)', 1e+21)
    """
    if named and key in named:
        if named[key] not in columns:
            raise RecipeError(f"--column {key}={named[key]}: no such column{nearest(named[key], columns)}")
        return named[key], 1.0
    found: dict[bool, list[tuple[str, float]]] = {True: [], False: []}  # by whether the name is one letter
    known = {_plain(name) for name in NAMES[key]}
    for column in columns:
        parts = re.fullmatch(r"(.*?)\s*(?:\(([kmbgt]|1e\d+)\))?", column.strip(), re.IGNORECASE)
        if parts and _plain(parts[1]) in known:
            unit = (parts[2] or "").lower()
            found[len(parts[1]) == 1].append((column, UNITS[unit] if unit in UNITS else float(unit)))
    best = found[False] or found[True]
    if len(best) > 1:
        names = [name for name, _ in best]
        raise RecipeError(f"{key} may be {' or '.join(names)}: choose with --column {key}={names[0]}")
    return best[0] if best else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def number(path: str, position: int, row: Mapping[str, Any], column: str) -> float:
    """A positive number from a cell. Raises DataError with the file, the run's number and what is there."""
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}, run {position}: no number as {column}, but {row.get(column, '')!r}") from None
    if not 0 < value < np.inf:
        raise DataError(
            f"{path}, run {position}: {column} is {value:g}, a positive number was expected; leave the run out"
        )
    return value


def read_runs(path: str, where: Sequence[str] = (), named: Mapping[str, str] | None = None) -> Runs:
    """Runs from a table with columns for parameters, loss, and tokens or flops, all positive. Raises DataError."""
    rows = read_rows(path, where)
    first: dict[str, tuple[int, dict[str, Any]]] = {}
    for place, row in enumerate(rows, 1):
        first.setdefault(json.dumps(row, default=str), (place, row))
    columns = columns_of(rows)
    found = {key: find(columns, key, named) for key in NAMES}
    wanted = [key for key in ("parameters", "loss") if found[key] is None]
    if found["tokens"] is None and found["flops"] is None:
        wanted.append("tokens or flops")
    if wanted:
        shown = ", ".join(columns[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
        known = "; ".join(", ".join(NAMES[key]) for name in wanted for key in name.split(" or "))
        raise DataError(
            f"{path}: no column for {', '.join(wanted)}; it has {shown}. Understood names: {known}; or say which, as "
            f"in --column {wanted[0].split(' ')[0]}=NAME"
        )

    def column(key: str) -> np.ndarray:
        about = found[key]
        assert about is not None
        return about[1] * np.array([number(path, place, row, about[0]) for place, row in first.values()])

    parameters, loss = column("parameters"), column("loss")
    tokens = column("tokens") if found["tokens"] else column("flops") / 6 / parameters
    flops = column("flops") if found["flops"] else 6 * parameters * tokens
    unique = tokens
    if found["unique_tokens"]:
        unique = np.minimum(column("unique_tokens"), tokens)
    elif found["epochs"]:
        unique = tokens / np.maximum(column("epochs"), 1)
    used = {key: about[0] for key, about in found.items() if about}
    return Runs(parameters, tokens, loss, flops, unique, used, len(rows) - len(first))
