"""Writes WARC 1.1 records, a gzip member each, with block and payload digests."""

from __future__ import annotations

import base64
import gzip
import hashlib
import uuid
from datetime import datetime

from pipeline.crawl.fetch import Fetched

_HOP_BY_HOP = {"transfer-encoding", "connection", "keep-alive"}
_IDENTICAL = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"


def record(kind: str, url: str | None, date: datetime, block: bytes, fields: dict[str, str]) -> bytes:
    """One compressed record; the Record-ID is made from its content, so equal captures give equal bytes."""
    digest = _sha1(block)
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {url} {date.isoformat()} {digest}")
    head = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{name}>",
        "WARC-Date": stamp(date),
        "WARC-Block-Digest": digest,
        "Content-Length": str(len(block)),
    }
    if url is not None:
        head["WARC-Target-URI"] = url
    lines = "".join(f"{key}: {value}\r\n" for key, value in (head | fields).items())
    return gzip.compress(b"WARC/1.1\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n", 6, mtime=0)


def warcinfo(date: datetime, fields: dict[str, str]) -> bytes:
    """The record that opens a file."""
    block = "".join(f"{key}: {_one_line(value)}\r\n" for key, value in fields.items()).encode()
    return record("warcinfo", None, date, block, {"Content-Type": "application/warc-fields"})


def stamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")


def payload_digest(page: Fetched) -> str:
    return _sha1(page.body)


def revisit(page: Fetched, date: datetime, first_url: str, first_date: str) -> bytes:
    """A revisit record: the head of a response whose body is that of the earlier one at `first_url`."""
    fields = {
        "Content-Type": "application/http; msgtype=response",
        "WARC-Payload-Digest": payload_digest(page),
        "WARC-IP-Address": page.address,
        "WARC-Profile": _IDENTICAL,
        "WARC-Refers-To-Target-URI": first_url,
        "WARC-Refers-To-Date": first_date,
    }
    return record("revisit", page.url, date, _head(page), fields)


def response(page: Fetched, date: datetime) -> bytes:
    """A response record. The body is stored with its content encoding, but without chunks."""
    fields = {
        "Content-Type": "application/http; msgtype=response",
        "WARC-Payload-Digest": payload_digest(page),
        "WARC-IP-Address": page.address,
    }
    if page.truncated:
        fields["WARC-Truncated"] = page.truncated
    return record("response", page.url, date, _head(page) + page.body, fields)


def _head(page: Fetched) -> bytes:
    lines = [f"HTTP/{page.version} {page.status} {_one_line(page.reason)}".rstrip()]
    for name, value in page.headers:
        if name.lower() == "content-length" or name.lower() in _HOP_BY_HOP:
            name = f"X-Crawler-{name}"
        lines.append(f"{_one_line(name)}: {_one_line(value)}")
    lines.append(f"Content-Length: {len(page.body)}")
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"


def outcome(page: Fetched, date: datetime) -> bytes:
    """A metadata record that tells why there is no response."""
    block = f"outcome: {page.failure}\r\ndetail: {_one_line(page.detail)}\r\n".encode("utf-8", "replace")
    return record("metadata", page.url, date, block, {"Content-Type": "application/warc-fields"})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sha1(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()
