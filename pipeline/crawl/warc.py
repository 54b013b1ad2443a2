"""`crawl.warc`: reads WARC, WET and ARC files (gzip, zstd or plain) into RECORD rows, from disk, S3 or http(s)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.crawl import inputs, remote
from pipeline.crawl.archive import records
from pipeline.crawl.capture import HTML_TYPES, Revisits, add_capture
from pipeline.crawl.rows import Rows
from pipeline.schema import RECORD
from pipeline.step import Source, Verdict

if TYPE_CHECKING:
    from pipeline.run import StageRun


class Warc(Source):
    """Records of WARC, WET and ARC files, one row for each response, resource, conversion and revisit record.

    Records that only describe others (warcinfo, request, metadata) are no rows. Remote files are read in ranges, which
    are tried again when a server is busy or a connection breaks. Rows that are no documents are
    removed under `redirect`, `http_status`, `content_type`, `empty`, `too_large`, `revisit`, `continuation`;
    a damaged record or stretch of a file is a failed row. The records before and behind it are recovered.
    """

    path: str | tuple[str, ...] = Field(
        description="file, folder, glob, http(s):// URL or Common Crawl path list (warc.paths.gz), or a list of these"
    )
    prefix: str = Field(
        remote.COMMON_CRAWL, description="what stands before the names in a path list; s3://commoncrawl/ works too"
    )
    max_files: int | None = Field(None, gt=0, description="read only the first files, to try something")
    revisits: Literal["count", "resolve"] = Field(
        "count", description="resolve: a revisit is a row with the payload of an earlier record of its file"
    )
    source: str = Field("web", description="name of the corpus, for mixing")
    content_types: tuple[str, ...] = Field(HTML_TYPES, description="media types of responses that are kept")
    max_record_bytes: int = Field(16 << 20, gt=0, description="larger records are removed as too_large")

    def check(self) -> None:
        inputs.check(self.step_name(), self.path, self._files())

    def _files(self) -> list[inputs.File]:
        return inputs.find(self.path, lambda pattern: remote.find(pattern, self.prefix), at_most=self.max_files)

    def input_identity(self) -> list[Any]:
        return inputs.identity(self._files())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        return inputs.grouped([{"path": entry.path, "key": key, "bytes": entry.size} for key, entry in self._files()])

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        rows, limit = Rows(RECORD, self.source), self.max_record_bytes
        for file in inputs.each(task):
            earlier = Revisits() if self.revisits == "resolve" else None
            with remote.open_read(file["path"]) as stream:
                for record in records(stream, max_bytes=limit + 1):
                    add_capture(
                        rows, file["key"], record, content_types=self.content_types, max_bytes=limit, earlier=earlier
                    )
                    yield from rows.full()
        yield from rows.rest()
