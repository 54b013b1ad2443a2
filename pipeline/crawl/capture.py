"""What becomes of one archive record: a RECORD row that is kept, removed for a reason, or failed."""

from __future__ import annotations

import hashlib

from pipeline.crawl.archive import RawRecord
from pipeline.crawl.message import decoded_body, parse_response
from pipeline.crawl.rows import Rows, timestamp
from pipeline.schema import document_id

HTML_TYPES = ("text/html", "application/xhtml+xml")


_KEPT_FOR_REVISITS = 64 << 20


class Revisits:
    """Payloads of responses by their digest, for the revisit records that follow; the oldest go beyond 64 MiB."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str | None, bytes]] = {}
        self._bytes = 0

    def keep(self, digest: str, content_type: str | None, payload: bytes | memoryview) -> None:
        if digest and digest not in self._known and len(payload) <= _KEPT_FOR_REVISITS:
            self._known[digest] = content_type, bytes(payload)
            self._bytes += len(payload)
            while self._bytes > _KEPT_FOR_REVISITS:
                self._bytes -= len(self._known.pop(next(iter(self._known)))[1])

    def find(self, digest: str) -> tuple[str | None, bytes] | None:
        return self._known.get(digest)


def add_capture(
    rows: Rows,
    key: str,
    record: RawRecord,
    *,
    content_types: tuple[str, ...] = HTML_TYPES,
    max_bytes: int = 16 << 20,
    keep_truncated: bool = True,
    earlier: Revisits | None = None,
) -> None:
    """Add the row of one archive record.

    `key` is the file's name in the identity; with "" the identity comes from URL and content alone. Removed as
    `redirect`, `http_status`, `content_type`, `truncated`, `empty`, `too_large`, `revisit` or `continuation`;
    failed as `damaged`. With `earlier`, a revisit is the row of the payload that it refers to, if that is there.
    """
    kind, headers = record.kind, record.headers
    payload: bytes | memoryview = record.block
    content_type, problem = headers.get("content-type"), record.problem
    reason = "damaged" if problem else None
    digest = headers.get("warc-payload-digest", "")
    original = earlier.find(digest) if earlier and kind == "revisit" and reason is None else None
    if original is not None:
        content_type, payload = original
    elif kind in ("revisit", "continuation"):
        reason = reason or kind
    elif record.size > max_bytes:
        reason = reason or "too_large"
    elif reason is None and kind == "response" and (response := parse_response(record.block)):
        content_type = response.headers.get("content-type")
        payload = response.body
        if response.status != 200:
            reason = "redirect" if 300 <= response.status < 400 else "http_status"
        elif not _is_wanted(content_type, payload, content_types):
            reason = "content_type"
        elif "warc-truncated" in headers and not keep_truncated:
            reason = "truncated"
        else:
            payload, problem = decoded_body(response, max_bytes)
            if problem and "warc-truncated" in headers:
                problem = None
            if problem:
                reason = "too_large" if len(payload) >= max_bytes else "damaged"
    elif reason is None and kind != "conversion" and not _is_wanted(content_type, payload, content_types):
        reason = "content_type"
    if reason is None and _is_blank(payload):
        reason = "empty"
    if earlier and reason is None and original is None:
        earlier.keep(digest, content_type, payload)
    url = headers.get("warc-target-uri", "").strip("<> ")
    row = {
        "doc_id": _identity(key, record, url, payload),
        "url": url or None,
        "date": timestamp(headers.get("warc-date")),
        "content_type": content_type,
        "payload": payload if reason in (None, "damaged") else None,
    }
    error = f"{key or url}, record {record.number}: {problem}" if reason == "damaged" else None
    rows.add(row, reason=reason, error=error)


def _is_blank(payload: bytes | memoryview) -> bool:
    # the first bytes decide nearly always; strip copies all of them
    return not bytes(payload[:64]).strip() and not bytes(payload).strip()


def _is_wanted(content_type: str | None, payload: bytes | memoryview, content_types: tuple[str, ...]) -> bool:
    if content_type and (media := content_type.partition(";")[0].strip().lower()):
        return media in content_types
    return bytes(payload[:1024]).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _identity(key: str, record: RawRecord, url: str, payload: bytes | memoryview) -> bytes:
    # the file's own digest spares hashing; it need not be true, because file and record number are in the identity
    # (nor has a revisit a body of its own: its block is a head, with the time of the answer in it)
    digest = record.headers.get("warc-payload-digest") if key or record.kind == "revisit" else None
    content = digest.encode() if digest else hashlib.blake2b(payload, digest_size=32).digest()
    return document_id(key, record.number if key else 0, url, content)
