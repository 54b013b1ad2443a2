"""Trains the n-gram language model that filters.perplexity scores with, on a clean reference, as CCNet does."""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cluster import storage
from cluster.errors import DataError, RecipeError
from pipeline import shards
from pipeline.filters import perplexity
from pipeline.filters.fasttext_quality import reference_texts
from pipeline.optional import require
from pipeline.step import Corpus, Documents, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

CELLS_PER_DOUBLING = 64
CELLS = 64 * CELLS_PER_DOUBLING
"""The histogram's cells: perplexities up to 2 ** 64 by their logarithm, so that percentiles are the same however
the corpus is cut."""


class TrainPerplexity(Corpus):
    """An n-gram model by modified Kneser-Ney smoothing, and the percentiles of this corpus' perplexity under it.

    The model is trained on `reference` (clean text of one language: an encyclopaedia, say), a sentence a line. Then
    all documents are scored once; the percentiles are stored beside the model, so that filters.perplexity can cut the
    corpus into head, middle and tail by share (CCNet: the best 30 % and 60 %), or drop what lies beyond a percentile.

    The artifact is a folder with model.arpa (KenLM opens it) and perplexity.json (how text is split, percentiles).
    Source: Wenzek et al. 2019 (CCNet), arXiv 1911.00359; Heafield et al. 2013, ACL P13-2121.
    """

    makes: ClassVar[str | None] = "perplexity_model"
    changes_rows: ClassVar[bool] = False

    reference: tuple[str, ...] = Field(description="clean texts: JSONL files (patterns; .gz and .xz too)")
    text_field: str = Field("text", description="the text in those files")
    order: int = Field(5, ge=2, le=6, description="words in the longest n-gram")
    tokens: Literal["words", "characters", "sentencepiece"] = Field("words", description="what the model counts")
    sentencepiece: str | None = Field(None, description="the SentencePiece model, for tokens: sentencepiece")
    lower: bool = Field(True, description="lower-case the text and write digits as 0, as CCNet does")
    prune: int = Field(0, ge=0, description="n-grams of 3 words and more that occur this often or less are left out")
    max_tokens: int = Field(20_000_000, ge=1, description="tokens to train on; some 300 bytes of memory each")

    def check(self) -> None:
        require("kenlm", "filters.train_perplexity", "leave the step and filters.perplexity out")
        for pattern in self.reference:
            if not glob.glob(pattern):
                raise RecipeError(f"filters.train_perplexity: no file matches '{pattern}'")
        perplexity.check_tokens(self.step_name(), self.tokens, self.sentencepiece)

    def input_identity(self) -> list[Any]:
        files = [path for pattern in self.reference for path in sorted(glob.glob(pattern))]
        files += [self.sentencepiece] if self.sentencepiece else []
        return [[os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in files]

    def decide(self, stage: StageRun) -> dict[str, Any]:
        (trained,) = stage.map("train", [{}])
        tasks = [{"partition": p, "bytes": p["bytes"], "model": trained["model"]} for p in stage.partitions]
        cells = np.zeros(CELLS, np.int64)
        for result in stage.map("score", tasks):
            for cell, count in result["cells"]:
                cells[cell] += count
        folder = storage.join(stage.folder, "perplexity_model")
        percentiles = percentiles_of(cells)
        about = {"tokens": self.tokens, "lower": self.lower, "percentiles": percentiles}
        storage.write_bytes(storage.join(folder, "model.arpa"), storage.read_bytes(trained["model"]))
        if self.sentencepiece:
            with open(self.sentencepiece, "rb") as file:
                storage.write_bytes(storage.join(folder, "sentencepiece.model"), file.read())
        storage.write_bytes(storage.join(folder, "perplexity.json"), json.dumps(about).encode())
        shown = {f"p{k}": percentiles[k] for k in (10, 30, 50, 60, 90)} if percentiles else {}
        return {"path": folder, "report": {**trained["report"], **shown}}

    def train(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Train in one worker and write the model."""
        from pipeline.kernels.kneser_ney import train
        from pipeline.tokens.sample import beating

        used = 0

        def sentences() -> Iterator[list[str]]:
            nonlocal used
            split = perplexity.splitter(self.tokens, self.sentencepiece)
            for text in reference_texts(self.reference, self.text_field):
                for tokens in perplexity.sentences(text, split, self.lower):
                    used += len(tokens)
                    yield tokens
                if used >= self.max_tokens:
                    return

        try:
            model = beating(work, lambda: train(sentences(), self.order, self.prune))
        except ValueError as error:
            raise DataError(f"filters.train_perplexity: reference {', '.join(self.reference)}: {error}") from None
        path = work.path("model.arpa")
        with storage.open_write(path) as file:
            lines = model.arpa()
            while part := "\n".join(itertools.islice(lines, 50_000)):
                file.write(f"{part}\n".encode("utf-8", "replace"))
                work.progress(0)
        sizes = {f"{n}_grams": int(order.kept.sum()) for n, order in enumerate(model.orders, 1)}
        return {"model": path, "report": {"tokens": used, **sizes}}

    def score(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Histogram of the documents' perplexities."""
        split = perplexity.splitter(self.tokens, self.sentencepiece)
        cells = np.zeros(CELLS, np.int64)
        for batch in shards.read(task["partition"], columns=["text"], batch_documents=work.batch_documents):
            found = perplexity.perplexities(Documents(batch), task["model"], split, self.lower)
            found = found[~np.isnan(found)]
            cells += np.bincount(cell_of(found), minlength=CELLS)
            work.progress(batch.num_rows)
        used = np.flatnonzero(cells)
        return {"cells": [[int(cell), int(cells[cell])] for cell in used]}


def cell_of(values: np.ndarray) -> np.ndarray:
    """The histogram's cell of each perplexity, int64."""
    cells: np.ndarray = (np.log2(np.maximum(values, 1.0)) * CELLS_PER_DOUBLING).astype(np.int64)
    return np.minimum(cells, CELLS - 1)


def percentiles_of(cells: np.ndarray) -> list[float]:
    """The perplexity that 0, 1 … 100 % of the documents do not exceed, up to a cell (1.1 %); none without documents."""
    below = np.cumsum(cells)
    if below[-1] == 0:
        return []
    edges = np.searchsorted(below, np.maximum(np.arange(101) / 100 * below[-1], 1)) + 1
    return [float(value) for value in 2.0 ** (edges / CELLS_PER_DOUBLING)]
