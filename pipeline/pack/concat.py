"""Concat and chop: all documents end to end, cut every seq_len tokens; nothing is lost, all rows but the last are full.

How most language models were pretrained. It cuts about a third of all documents at 2,048 tokens
(benchmarks/bench_packing.py measures it beside best fit); use it for comparison, or where rows must be exactly full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.pack import buckets, rows
from pipeline.schema import Row
from pipeline.step import Corpus, Work
from pipeline.tokens.vocabulary import tokenizer_identity


class Concat(Corpus):
    """Lays a bucket's documents end to end, in hash order, and chops; row after row, not sentence by sentence."""

    takes: ClassVar[Row] = Row.TOKENS
    gives: ClassVar[Row] = Row.PACKED

    seq_len: int = Field(2048, ge=2, description="tokens per row")
    validation_share: float = Field(0.0, ge=0, lt=1, description="share of documents held out, chosen by hash")
    shard_tokens: int = Field(1 << 26, ge=1, description="tokens per shard: the window that is packed at once")
    min_tokens: int = Field(2, ge=1, description="shorter documents are removed; the end token counts")
    max_tokens: int | None = Field(None, ge=1, description="longer documents are removed, not cut (conversations)")
    groups: list[str] = Field(
        ["source", "language"], description="columns whose values go with each document: held-out loss is told by them"
    )
    tokenizer: str | None = Field(None, description="folder of the tokenizer; else the recipe's own")

    def needs(self) -> Sequence[str]:
        return () if self.tokenizer else ("tokenizer",)

    def input_identity(self) -> list[Any]:
        return tokenizer_identity(self.tokenizer)

    decide = buckets.pack_corpus
    count = buckets.count
    spread = buckets.spread

    def fill(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        return rows.fill(task, work, concat)


def concat(lengths: np.ndarray, seq_len: int) -> rows.Rows:
    """Lay parts of these lengths (int64 [n]) end to end and cut every seq_len tokens."""
    from pipeline.kernels.packing import chop_pieces

    part, start, length, row, count = chop_pieces(lengths, seq_len)
    return rows.Rows(part, start, length, row, count)
