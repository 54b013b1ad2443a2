"""`crawl.files`: a tree of files (HTML, PDF, DOCX, ODT, EPUB, Markdown, plain text, source code), one row each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
from pydantic import Field

from cluster import storage
from pipeline.crawl import inputs
from pipeline.crawl.rows import Rows
from pipeline.extract.office import DOCX
from pipeline.schema import RECORD, document_id
from pipeline.step import Source, Verdict

if TYPE_CHECKING:
    from pipeline.run import StageRun

_CODE = "py c h cc cpp hpp java go rs js ts jsx tsx rb php swift kt scala sh sql r jl lua pl hs ml cs m css"
CONTENT_TYPES = dict.fromkeys(["txt", "md", "rst", "tex", *_CODE.split()], "text/plain") | {
    "html": "text/html",
    "htm": "text/html",
    "xhtml": "application/xhtml+xml",
    "pdf": "application/pdf",
    "docx": DOCX,
    "odt": "application/vnd.oasis.opendocument.text",
    "epub": "application/epub+zip",
}
"""Media types by the ending of a file's name."""

_FILES_PER_TASK = 500
_BYTES_PER_TASK = 256 << 20


class Files(Source):
    """Every file below a folder or of a glob as a RECORD row; the ending of its name tells what it is.

    Files of other kinds are removed as `content_type`, empty ones as `empty`, too large ones as `too_large`. The URL is
    `url_prefix` and the name below the root. Follow it with `extract.main_content`.
    """

    path: str | tuple[str, ...] = Field(description="file, folder, glob or a list of these; local or s3://")
    source: str = Field("files", description="name of the corpus, for mixing")
    url_prefix: str = Field("file:///", description="what stands before a file's name in its URL")
    max_file_bytes: int = Field(64 << 20, gt=0, description="larger files are removed as too_large")

    def check(self) -> None:
        inputs.check(self.step_name(), self.path, self._files())

    def _files(self) -> list[inputs.File]:
        return inputs.find(self.path)

    def input_identity(self) -> list[Any]:
        return inputs.identity(self._files())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = []
        for key, entry in self._files():
            full = not tasks or len(tasks[-1]["files"]) >= _FILES_PER_TASK
            if full or tasks[-1]["bytes"] + entry.size > _BYTES_PER_TASK:
                tasks.append({"files": [], "bytes": 0})
            tasks[-1]["files"].append([key, entry.path, entry.size, entry.version])
            tasks[-1]["bytes"] += entry.size
        return tasks

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        rows = Rows(RECORD, self.source)
        for key, path, size, version in task["files"]:
            kind = CONTENT_TYPES.get(key.rpartition("/")[2].rpartition(".")[2].lower())
            reason = "too_large" if size > self.max_file_bytes else None if kind else "content_type"
            payload = storage.read_bytes(path) if reason is None else None
            if payload is not None and not payload.strip():
                reason = "empty"
            changed = datetime.fromtimestamp(int(version) // 10**9, UTC) if version.isdigit() else None
            row = {
                "doc_id": document_id(key, 0, "", payload or b""),
                "url": self.url_prefix + quote(key),
                "date": changed,
                "content_type": kind,
                "payload": payload,
            }
            rows.add(row, reason=reason)
            yield from rows.full()
        yield from rows.rest()
