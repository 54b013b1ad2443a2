"""Greedy packing: documents in hash order, the next row begins when a document does not fit.

One open row at a time: needs no memory and keeps neighbours together, but leaves rows emptier than best fit.
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


class Greedy(Corpus):
    """Packs documents one after the other; only documents longer than a row are cut."""

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
        return rows.fill(task, work, greedy)


def greedy(lengths: np.ndarray, seq_len: int) -> rows.Rows:
    """Lay parts of these lengths (int64 [n]) into rows in their order."""
    from pipeline.kernels.packing import cut_pieces, next_fit

    part, start, length = cut_pieces(lengths, seq_len)
    row, count = next_fit(length, seq_len)
    return rows.Rows(part, start, length, row, count)
