"""A quality classifier in DCLM's way: fastText trained on good and ordinary texts, the best share of documents kept."""

from __future__ import annotations

import functools
import glob
import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster import storage
from cluster.errors import DataError, RecipeError
from pipeline import shards
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.kernels.fasttext import Classifier
    from pipeline.run import StageRun

CELLS = 10_000
GOOD, ORDINARY = "good", "ordinary"
SCORES = pa.schema([("quality", pa.float64())])


class FastTextQuality(Corpus):
    """Keeps the documents that a fastText classifier finds most like the good texts (`low_quality`).

    Trained on `positives` against `negatives`, or against a sample of the corpus itself; a share of both is held out,
    and precision and recall there stand in the stage's stage.json. With `model` a model is applied instead, and
    `good_label` names its label. The threshold is `threshold`, or the number that `keep_share` of the corpus reaches:
    it is found on all documents and stored with the decision, so a second run does not choose again.

    Column: quality, the probability of the good label. The trained model is in fastText's own format, quality.bin.
    Source: Li et al. 2024 (DCLM), arXiv 2406.11794, section 4.4; fastText, arXiv 1607.01759.
    """

    positives: tuple[str, ...] = Field((), description="good texts: JSONL files (patterns; .gz and .xz too)")
    negatives: tuple[str, ...] = Field((), description="ordinary texts; none: a sample of the corpus")
    text_field: str = Field("text", description="the text in those files")
    model: str | None = Field(None, description="a fastText model to apply instead of training one")
    good_label: str = Field(GOOD, description="the label whose probability is the score")
    keep_share: float = Field(0.1, gt=0, le=1, description="share of the documents that stays")
    threshold: float | None = Field(None, ge=0, le=1, description="least probability; instead of keep_share")
    max_examples: int = Field(200_000, ge=2, description="texts of each kind to train on, chosen by content hash")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the texts that is kept from training")
    dim: int = Field(100, ge=1, description="length of the word vectors")
    epochs: int = Field(5, ge=1, description="passes over the texts")
    learning_rate: float = Field(0.1, gt=0, description="at the start; falls to 0")
    word_ngrams: int = Field(2, ge=1, le=5, description="longest word n-gram")
    min_count: int = Field(2, ge=1, description="rarer words have no vector")
    max_chars: int = Field(100_000, ge=1, description="characters of a text that are looked at")
    column: str = Field("quality", description="column for the probability")

    def check(self) -> None:
        if self.model is None and not self.positives:
            raise RecipeError("filters.fasttext_quality: name `positives` to train on, or a `model` to apply")
        if self.model is not None and not os.path.isfile(self.model):
            raise RecipeError(f"filters.fasttext_quality: no model at '{self.model}'")
        for pattern in (*self.positives, *self.negatives):
            if not glob.glob(pattern):
                raise RecipeError(f"filters.fasttext_quality: no file matches '{pattern}'")

    def input_identity(self) -> list[Any]:
        files = [path for pattern in (*self.positives, *self.negatives) for path in sorted(glob.glob(pattern))]
        files += [self.model] if self.model else []
        return [[os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns] for path in files]

    def decide(self, stage: StageRun) -> dict[str, Any]:
        tasks = [{"partition": p, "bytes": p["bytes"]} for p in stage.partitions]
        report: dict[str, Any] = {}
        path = self.model
        if path is None:
            share = min(1.0, 1.2 * self.max_examples / max(1, stage.rows))
            sampled = [] if self.negatives else stage.map("sample", [{**task, "share": share} for task in tasks])
            (trained,) = stage.map("train", [{"samples": [result["file"] for result in sampled]}])
            path, report = trained["model"], trained["report"]
        scored = stage.map("score", [{**task, "model": path} for task in tasks])
        cells = np.sum([result["histogram"] for result in scored], axis=0) if scored else np.zeros(CELLS + 1)
        threshold = self.threshold if self.threshold is not None else threshold_for(cells, self.keep_share)
        return {
            "path": path, "scores": [result["scores"] for result in scored], "threshold": threshold, "report": report,
        }  # fmt: skip

    def sample(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Texts of a partition whose content hash is low enough: the same whatever the partitions are."""
        from pipeline.kernels.text import readable

        texts = []
        for batch in shards.read(task["partition"], columns=["text"], batch_documents=work.batch_documents):
            texts += [t for t in readable(batch.column("text")).to_pylist() if _hash(t) < task["share"]]
            work.progress(batch.num_rows)
        path = work.path("sample.json")
        storage.write_bytes(path, json.dumps(texts).encode())
        return {"file": path}

    def train(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Train on all texts but those held out, and measure on these."""
        from pipeline.kernels.fasttext import Classifier
        from pipeline.kernels.fasttext_train import model_bytes, train

        sampled = (text for path in task["samples"] for text in json.loads(storage.read_bytes(path)))
        negatives = reference_texts(self.negatives, self.text_field) if self.negatives else sampled
        texts, labels = [], []
        for label, source in enumerate((reference_texts(self.positives, self.text_field), negatives)):
            chosen = sorted({text for text in source if text.strip()}, key=_hash)[: self.max_examples]
            if len(chosen) < 2:
                raise DataError(
                    f"filters.fasttext_quality: {len(chosen)} {(GOOD, ORDINARY)[label]} texts; at least 2 are needed"
                )
            texts += chosen
            labels += [label] * len(chosen)
            work.progress(len(chosen))
        held = np.array([_hash("held out" + text) < self.held_out for text in texts])
        cut = [text[: self.max_chars] for text in texts]
        model = train(
            [text for text, out in zip(cut, held, strict=True) if not out],
            [label for label, out in zip(labels, held, strict=True) if not out],
            [self.good_label, ORDINARY],
            dim=self.dim, epochs=self.epochs, learning_rate=self.learning_rate, word_ngrams=self.word_ngrams,
            min_count=self.min_count, seed=work.seed,
        )  # fmt: skip
        path = work.path("quality.bin")
        storage.write_bytes(path, model_bytes(model, epochs=self.epochs, min_count=self.min_count))
        truth = np.array(labels)[held] == 0
        docs = Documents(
            pa.RecordBatch.from_pydict(
                {"text": pa.array([t for t, o in zip(cut, held, strict=True) if o], pa.large_string())}
            )
        )
        said = _good(Classifier.of(model), docs, self.good_label, self.max_chars) >= 0.5
        right = int((said & truth).sum())
        report = {
            "training_texts": int((~held).sum()), "held_out_texts": int(held.sum()),
            "precision": right / max(1, int(said.sum())), "recall": right / max(1, int(truth.sum())),
        }  # fmt: skip
        return {"model": path, "report": report}

    def score(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """The probability of the good label for each document of a partition."""
        classifier = _classifier(task["model"])
        if self.good_label not in classifier.model.labels:
            raise DataError(
                f"{task['model']}: no label '{self.good_label}'; it has {', '.join(classifier.model.labels)}"
            )
        histogram = np.zeros(CELLS + 1, np.int64)
        path = work.path("scores.arrow")
        with storage.open_write(path) as sink, pa.ipc.new_file(sink, SCORES) as writer:
            for batch in shards.read(task["partition"], columns=["text"], batch_documents=work.batch_documents):
                quality = _good(classifier, Documents(batch), self.good_label, self.max_chars)
                histogram += np.bincount((np.nan_to_num(quality) * CELLS).astype(np.int64), minlength=CELLS + 1)[
                    : CELLS + 1
                ]
                writer.write_batch(pa.RecordBatch.from_arrays([pa.array(quality)], schema=SCORES))
                work.progress(batch.num_rows)
        return {"scores": path, "histogram": histogram.tolist()}

    def decisions(self, decided: dict[str, Any], partition: int) -> pa.Table:
        with storage.open_read(decided["scores"][partition]) as source:
            table = pa.ipc.open_file(source).read_all()
        return table.append_column("threshold", pa.array(np.full(table.num_rows, decided["threshold"])))

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        assert decisions is not None
        part = decisions.slice(first_row, len(docs))
        quality, threshold = part.column("quality").to_numpy(), part.column("threshold").to_numpy()
        verdict = Verdict.keep(len(docs))
        goes = ~(quality >= threshold)
        verdict.reason[goes] = "low_quality"
        verdict.score[goes], verdict.threshold[goes] = quality[goes], threshold[goes]
        rows = docs.batch
        if self.column in rows.schema.names:
            rows = rows.drop_columns([self.column])
        return rows.append_column(self.column, pa.array(quality)), verdict


def threshold_for(cells: np.ndarray, share: float) -> float:
    """The largest multiple of 1 / CELLS that at least `share` of the documents reach, from their histogram."""
    reach = np.cumsum(cells[::-1])[::-1]  # documents at this cell or above
    enough = np.flatnonzero(reach >= share * reach[0])
    return float(enough[-1] / CELLS) if len(enough) else 0.0


def _good(classifier: Classifier, docs: Documents, label: str, max_chars: int) -> np.ndarray:
    table = classifier.probabilities(*docs.text_buffers(), max_chars)
    good: np.ndarray = table[:, classifier.model.labels.index(label)].astype(np.float64)
    return good


@functools.lru_cache(maxsize=2)
def _classifier(path: str) -> Classifier:
    from pipeline.kernels.fasttext import Classifier
    from pipeline.kernels.fasttext_model import parse_model

    return Classifier.of(parse_model(path, storage.read_bytes(path)))


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64


def reference_texts(patterns: tuple[str, ...], field: str) -> Iterator[str]:
    """The texts of JSONL files (patterns; .gz and .xz too), file by file. Raises DataError for a line without one."""
    for path in (path for pattern in patterns for path in sorted(glob.glob(pattern))):
        opened = {".gz": gzip.open, ".xz": lzma.open}.get(os.path.splitext(path)[1], open)
        with opened(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
            for number, line in enumerate(file, 1):
                try:
                    yield str(json.loads(line)[field])
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{path}: line {number}: expected a JSON object with a text '{field}'") from None
