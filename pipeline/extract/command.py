"""`corpusmill extract`: what `extract.main_content` makes of a file or of an archive's records, and what it decided."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from cluster.errors import DataError
from cluster.settings import make
from pipeline.crawl import remote
from pipeline.crawl.archive import is_archive
from pipeline.crawl.capture import HTML_TYPES
from pipeline.crawl.files import CONTENT_TYPES, Files
from pipeline.crawl.warc import Warc
from pipeline.extract import office
from pipeline.extract.main_content import Engine, ExtractedPage, MainContent, extract_any, whole_text
from pipeline.progress import kernels_compiled

READ = (*HTML_TYPES, "text/plain", *office.TYPES)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TAG = re.compile(rb"<(?:!doctype|html|head|body|meta|title|div|p|\?xml)[\s>]", re.I)


class Told(NamedTuple):
    """One document: its text if any, the reason and error that `extract.main_content` or the reader gave if not."""

    url: str | None
    content_type: str | None
    page: ExtractedPage
    reason: str | None
    error: str | None
    why: str = ""

    def as_json(self) -> str:
        """One line: url, content_type, what was decided, reason and error (null where there is text), text."""
        about = {"url": self.url, "content_type": self.content_type, "reason": self.reason, "error": self.error}
        return json.dumps({**about, **self.page._asdict(), "encoding": self._encoding()}, ensure_ascii=False)

    def decided(self) -> str:
        """Media type, encoding, language of the markup, title, date; then the length, or why nothing came."""
        page = self.page
        found = {"encoding": self._encoding(), "language": page.language, "title": page.title}
        found["published"] = page.published
        told = [_media(self.content_type), *(f"{name} {value}" for name, value in found.items() if value)]
        told.append(f"nothing: {self.reason}{self.why}" if self.reason else f"{len(page.text):,} characters")
        return _CONTROLS.sub("\ufffd", "; ".join(filter(None, told)) + (f": {self.error}" if self.error else ""))

    def _encoding(self) -> str | None:
        """The codec of what was decoded; other files have none."""
        decoded = self.reason in (None, "no_text") and _media(self.content_type) not in office.TYPES
        return self.page.encoding if decoded else None


def extract_file(
    path: str, *, url: str | None = None, content_type: str | None = None, engine: Engine = "corpusmill",
    as_json: bool = False,
) -> bool:  # fmt: skip
    """Print the text of a file, or of the records of an archive (those of `url`, if given), and tell what was decided.

    Text goes to stdout, what was decided to stderr. `content_type` is what a server stated, instead of what the file's
    bytes and name tell. False when no text came. Raises DataError for what is no file of a kind that is read.
    """
    make(MainContent, {"engine": engine}, "extract").check()
    if not kernels_compiled():
        print("the first use compiles its kernels: a minute or two, once", file=sys.stderr)
    archive = _opens_as_archive(path) and content_type is None
    documents = _records(path, url, engine) if archive else iter([_one(path, url, content_type, engine)])
    counts: Counter[str] = Counter()
    for told in documents:
        counts[told.reason or "text"] += 1
        if as_json:
            print(told.as_json(), flush=True)
            continue
        name = _CONTROLS.sub("\ufffd", told.url or path)
        print(f"{name}: {told.decided()}", file=sys.stderr, flush=True)
        if told.reason is None:
            text = _CONTROLS.sub("\ufffd", told.page.text) if sys.stdout.isatty() else told.page.text
            print(f"==> {name} <==\n{text}\n" if archive else text, flush=True)
    if archive and not as_json:
        others = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common() if reason != "text")
        told_all = f"{counts.total():,} records, {counts['text']:,} with text" + (f"; {others}" if others else "")
        print(f"{path}: {told_all}" + (f" (only those of {url})" if url else ""), file=sys.stderr)
    return counts["text"] > 0


def _opens_as_archive(path: str) -> bool:
    """Raises DataError where there is no file."""
    try:
        with remote.open_read(path) as stream:
            return is_archive(stream)
    except OSError as error:
        absent = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path}: {'a folder; give one of its files' if os.path.isdir(path) else absent}") from error


def _one(path: str, url: str | None, content_type: str | None, engine: Engine) -> Told:
    """The document that a whole file is."""
    limit = Files.model_fields["max_file_bytes"].default
    with remote.open_read(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: larger than {limit >> 20} MiB, which crawl.files would remove as too_large")
    content_type = content_type or _type_of(path, data)
    return _extracted(Told(url, content_type, ExtractedPage(""), None, None), data, engine)


def _records(path: str, url: str | None, engine: Engine) -> Iterator[Told]:
    """The rows that `crawl.warc` makes of an archive, of every media type that is read."""
    reader = make(Warc, {"path": path, "content_types": READ}, "extract")
    for batch, verdict in reader.read({"path": path, "key": path.rpartition("/")[2], "bytes": 0}):
        for number, row in enumerate(batch.select(["url", "content_type", "payload"]).to_pylist()):
            if url is not None and row["url"] != url:
                continue
            reason = verdict.reason[number] if verdict else None
            error = verdict.error[number] if verdict and verdict.error is not None else None
            told = Told(row["url"], row["content_type"], ExtractedPage(""), reason, error)
            yield told if reason else _extracted(told, row["payload"], engine)


def _extracted(told: Told, data: bytes, engine: Engine) -> Told:
    """What `extract.main_content` makes of a document; for one without text also where its text has gone."""
    try:
        page, reason, error = extract_any(data, told.content_type, url=told.url, engine=engine)
    except Exception as failure:  # as the pipeline has it: this document fails, the others go on
        return told._replace(reason=type(failure).__name__, error=str(failure))
    told = told._replace(page=page, reason=reason, error=error)
    if reason or page.text.strip():
        return told
    if _media(told.content_type) in ("text/plain", *office.TYPES):
        return told._replace(reason="no_text")
    rest = len(whole_text(data))
    why = f", none of the {rest:,} characters in its markup are main content" if rest else ", its markup holds no text"
    return told._replace(reason="no_text", why=why)


def _media(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _type_of(path: str, data: bytes) -> str:
    """The media type of a file by its first bytes, then by its name. Raises DataError."""
    if b"%PDF-" in data[:1024]:
        return "application/pdf"
    if data.startswith(b"PK\x03\x04") and (kind := _zipped(data)):
        return kind
    name = path.partition("?")[0] if remote.is_remote(path) else path
    if known := CONTENT_TYPES.get(name.rpartition(".")[2].lower()):
        return known
    head = data[: 1 << 12]
    if _TAG.search(head.replace(b"\0", b"")):
        return "text/html"
    if b"\0" not in head and data.strip():
        return "text/plain"
    raise DataError(
        f"{path}: {'empty' if not data.strip() else 'no file of a kind that is read'}; expected HTML, PDF, DOCX, ODT, "
        "EPUB, plain text, or an archive (WARC, WET, ARC); --type says what it is"
    )


def _zipped(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if "word/document.xml" in archive.NameToInfo:
                return office.DOCX
            with archive.open("mimetype") as stream:
                kind = stream.read(256).decode("ascii", "replace").strip()
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, NotImplementedError):
        return None
    return kind if kind in office.TYPES else None
