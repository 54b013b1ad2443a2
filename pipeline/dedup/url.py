"""`dedup.url`: of documents with one URL one stays, the most recent (Llama 3, arXiv 2407.21783, section 3.1.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from pipeline.dedup import index as indexing
from pipeline.dedup import keep as keeping
from pipeline.dedup import removal
from pipeline.dedup.exact import Exact
from pipeline.step import Corpus, Documents, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun


class Url(Corpus):
    """Of documents whose URLs mean the same page one stays; the others are removed as `url_duplicate`.

    URLs are compared without scheme, `www.`, fragment, default port, tracking parameters, order of parameters and a
    slash at the end. Documents without a URL stay.
    """

    keep: list[keeping.Policy] = Field(
        default=["newest", "longest"], description="which copy stays, in order of importance; then the least doc_id"
    )
    quality: str | None = Field(None, description="score column for keep: [quality]; the highest stays")
    sources: list[str] = Field(default=[], description="for keep: [source]; most preferred first")
    scope: str | None = Field(None, description="compare only documents with equal values of this column")
    size_column: str | None = Field("cluster_size", description="column for the number of copies a document stands for")
    index: str | None = Field(
        None, description="folder of an index: the documents in it stay, and what stays here joins them"
    )
    snapshot: str | None = Field(
        None, description="name of these documents in the index; a rerun under it adds nothing"
    )
    alarm_share: float = Field(0.75, gt=0, le=1, description="warn when a source loses more than this share")

    def check(self) -> None:
        keeping.check(self.keep, self.quality, self.sources, self.step_name())
        indexing.check_names(self.index, self.snapshot, self.step_name())
        self._exact().earlier()

    def input_identity(self) -> list[Any]:
        return self._exact().input_identity()

    def _exact(self) -> Exact:
        return Exact(compare="url", **self.model_dump())

    def decide(self, stage: StageRun) -> dict[str, Any]:
        return self._exact().decide(stage)

    def hashes(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Map: hash, rank and address of every URL of a partition."""
        return self._exact().hashes(task, work)

    def choose(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Reduce: of each group of equal URLs the first by rank stays."""
        return self._exact().choose(task, work)

    decisions = staticmethod(removal.decisions)

    def apply(
        self, docs: Documents, first_row: int, decisions: pa.Table | None
    ) -> tuple[pa.RecordBatch, Verdict | None]:
        return removal.carry_out(
            docs, first_row, decisions, reason="url_duplicate", threshold=math.nan, size_column=self.size_column
        )
