"""Evaluation items in the corpus: found by n-gram overlap, then the document is dropped, cut or labelled."""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.errors import DataError, RecipeError
from pipeline.step import Documents, Filter, Rule, Verdict

if TYPE_CHECKING:
    from pipeline.kernels.contamination import Index


class Contamination(Filter):
    """Finds items of evaluation sets in documents (`contaminated_<benchmark>`).

    Each text field of each item is one unit. Text is compared by its letters and digits alone, in lower case, so
    that re-flowed text and changed punctuation match; each Chinese or Japanese character is a token. A document's
    score is the share of the unit's n-grams that it has, for the unit with the largest share; n-grams that many
    units share (boilerplate of the benchmark) weigh less: 1 / number of units. Fields shorter than `ngram` tokens
    are left out; an item of such fields alone is one unit, "*", its fields in order (options with their letter).

    `action`: drop the document; cut the passages out of the text; label only, for the report. Scores:
    contamination, contamination_unit. Column: contamination, a struct (benchmark, item, field, coverage, passage),
    null where nothing was found above the threshold.
    Source: 8-grams as in Llama 3 (arXiv 2407.21783, section 5.1.4); the weights are ours.
    """

    bounds: ClassVar[frozenset[str]] = frozenset({"min_coverage", "action"})

    benchmarks: dict[str, str] = Field(description="name: JSONL file (.gz and .xz too) with one item per line")
    fields: dict[str, list[str]] = Field(default_factory=dict, description="name: fields to use; else all text fields")
    ngram: int = Field(8, ge=3, description="tokens per n-gram")
    min_coverage: float = Field(0.5, gt=0, le=1, description="share of an item's n-grams that makes a match")
    action: Literal["drop", "cut", "label"] = Field("drop", description="what happens to a document that matches")

    def check(self) -> None:
        if not self.benchmarks:
            raise RecipeError("filters.contamination: benchmarks is empty; name at least one JSONL file")
        for name, path in self.benchmarks.items():
            if not os.path.isfile(path):
                raise RecipeError(f"filters.contamination: benchmark '{name}': no file at '{path}'")
        if unknown := sorted(set(self.fields) - set(self.benchmarks)):
            raise RecipeError(f"filters.contamination: fields for {unknown}, which are not among the benchmarks")

    def input_identity(self) -> list[Any]:
        stats = {name: os.stat(path) for name, path in sorted(self.benchmarks.items()) if os.path.isfile(path)}
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]

    def scores(self, docs: Documents) -> dict[str, np.ndarray]:
        coverage, unit, _ = self._found(docs)
        return {"contamination": coverage, "contamination_unit": unit}

    def rules(self) -> list[Rule]:
        return []

    def verdict(self, docs: Documents, scores: Mapping[str, np.ndarray]) -> Verdict:
        verdict = Verdict.keep(len(docs))
        if self.action != "drop":
            return verdict
        items = self._items()
        coverage = np.asarray(scores["contamination"], np.float64)
        for row in np.flatnonzero(coverage >= self.min_coverage):
            verdict.reason[row] = f"contaminated_{items.units[int(scores['contamination_unit'][row])][0]}"
            verdict.score[row], verdict.threshold[row] = coverage[row], self.min_coverage
        return verdict

    def columns(self, docs: Documents) -> dict[str, pa.Array]:
        items = self._items()
        coverage, unit, spans = self._found(docs)
        texts = docs.column("text")
        labels: list[dict[str, Any] | None] = [None] * len(docs)
        cut: dict[int, bytes] = {}
        offsets, data = docs.text_buffers()
        for row in np.flatnonzero(coverage >= self.min_coverage).tolist():
            benchmark, item, field = items.units[int(unit[row])]
            raw = data[offsets[row] : offsets[row + 1]].tobytes()
            here = [(start - int(offsets[row]), end - int(offsets[row])) for start, end in spans(row)]
            passage = " … ".join(raw[start:end].decode("utf-8", "replace") for start, end in here)
            labels[row] = {
                "benchmark": benchmark, "item": item, "field": field, "coverage": float(coverage[row]),
                "passage": passage[:1000],
            }  # fmt: skip
            kept, done = [], 0
            for start, end in here:
                kept.append(raw[done:start])
                done = end
            cut[row] = b"".join([*kept, raw[done:]])
        out: dict[str, pa.Array] = {"contamination": pa.array(labels, LABEL)}
        if self.action == "cut" and cut:
            raw_texts = texts.cast(pa.large_binary()).to_pylist()
            values = [cut.get(row, text) for row, text in enumerate(raw_texts)]
            out["text"] = pa.array(values, pa.large_binary()).view(pa.large_string())
        return out

    def _items(self) -> Items:
        fields = tuple(sorted((name, tuple(names)) for name, names in self.fields.items()))
        return load_items(tuple(sorted(self.benchmarks.items())), fields, self.ngram)

    def _found(self, docs: Documents) -> tuple[np.ndarray, np.ndarray, Any]:
        from pipeline.kernels import contamination

        index = self._items().index

        def compute() -> tuple[np.ndarray, np.ndarray, Any]:
            first, start, end, hashes = contamination.tokens(*docs.text_buffers())
            coverage, unit, matched = contamination.overlaps(
                first, hashes, index.n, index.keys, index.rows, index.maybe, index.first, index.units,
                index.weight, index.unit_weight,
            )  # fmt: skip

            def spans(row: int) -> list[tuple[int, int]]:
                """Byte spans of the matched passages; those less than an n-gram apart are one."""
                out: list[tuple[int, int]] = []
                last = -index.n
                for i in (np.flatnonzero(matched[first[row] : first[row + 1]]) + first[row]).tolist():
                    if out and i - last <= index.n:
                        out[-1] = (out[-1][0], int(end[i]))
                    else:
                        out.append((int(start[i]), int(end[i])))
                    last = i
                return out

            return coverage, unit, spans

        return docs.once(f"contamination:{self.benchmarks}:{self.fields}:{self.ngram}", compute)


LABEL = pa.struct(
    [("benchmark", pa.string()), ("item", pa.int64()), ("field", pa.string()), ("coverage", pa.float64()),
     ("passage", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class Items:
    """The evaluation items: units[u] is (benchmark, line number of the item, field)."""

    units: list[tuple[str, int, str]]
    index: Index


@functools.lru_cache(maxsize=4)
def load_items(
    benchmarks: tuple[tuple[str, str], ...], fields: tuple[tuple[str, tuple[str, ...]], ...], n: int
) -> Items:
    """Read and index the benchmarks. Raises DataError for a file without any unit of n tokens."""
    from pipeline.kernels.contamination import Index, tokens
    from pipeline.step import string_buffers

    wanted = dict(fields)
    units: list[tuple[str, int, str]] = []
    texts: list[str] = []
    for name, path in benchmarks:
        before = len(texts)
        opened = {".gz": gzip.open, ".xz": lzma.open}.get(os.path.splitext(path)[1], open)
        with opened(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                found = _text_fields(_parse(line, path, number), wanted.get(name))
                for field, value in [*found, ("*", _whole(found))] if found else []:
                    units.append((name, number, field))
                    texts.append(value)
        if len(texts) == before:
            raise DataError(
                f"{path}: benchmark '{name}' has no text in the fields {wanted.get(name) or 'of its lines'}"
            )
    offsets, data = string_buffers(pa.array(texts, pa.large_string()))
    first, _, _, hashes = tokens(offsets, data)
    first, hashes = _without_needless(first, hashes, units, n)
    return Items(units, Index.of(first, hashes, n))


def _parse(line: str, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number + 1} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number + 1}: expected an object, found {type(row).__name__}")
    return row


def _text_fields(row: dict[str, Any], wanted: list[str] | tuple[str, ...] | None) -> list[tuple[str, str]]:
    """(field, text) of an item; lists of texts are joined."""
    out: list[tuple[str, str]] = []
    for field, value in row.items():
        if wanted is not None and field not in wanted:
            continue
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if isinstance(value, str):
            out.append((field, value))
    return out


def _whole(found: list[tuple[str, str]]) -> str:
    return "\n".join(f"{field}. {value}" if len(field) == 1 else value for field, value in found)


def _without_needless(
    first: np.ndarray, hashes: np.ndarray, units: list[tuple[str, int, str]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Empty the units "*" of items that have a field of n tokens."""
    keep = np.ones(len(hashes), np.bool_)
    counts = np.diff(first)
    long_field = False
    for unit, (_, _, field) in enumerate(units):
        if field != "*":
            long_field = long_field or counts[unit] >= n
            continue
        if long_field:
            keep[first[unit] : first[unit + 1]] = False
            counts[unit] = 0
        long_field = False
    return np.concatenate([[0], np.cumsum(counts)]), hashes[keep]
