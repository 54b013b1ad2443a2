"""HTTP messages as bytes: the head parsed, transfer and content encodings undone within a size limit."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})")
_HEADERS = tuple((name, b"\n" + name.encode()) for name in ("content-type", "content-encoding", "transfer-encoding"))
_CHUNK_SIZE = re.compile(rb"\s*([0-9a-fA-F]{1,16})\s*(?:;[^\r\n]*)?\r?\n")


class Response(NamedTuple):
    """An HTTP response; of its headers those that say how to read the body, names in lower case, the first of each."""

    status: int
    headers: dict[str, str]
    body: bytes | memoryview


def parse_response(message: bytes) -> Response | None:
    """Head and body (a view, no copy) of a response as it went over the wire; None without a status line."""
    status = _STATUS.match(message)
    if status is None:
        return None
    # an empty line ends the head, whichever line ends it has; a body is not searched for one when the head has its own
    end, body = message.find(b"\n\r\n"), memoryview(b"")
    bare = message.find(b"\n\n", 0, end + 1 if end >= 0 else len(message))
    if bare >= 0:
        head, body = message[:bare], memoryview(message)[bare + 2 :]
    elif end >= 0:
        head, body = message[:end], memoryview(message)[end + 3 :]
    else:
        head = message
    lower = head.lower()
    headers: dict[str, str] = {}
    for name, mark in _HEADERS:
        at = lower.find(mark)
        while at >= 0:
            end = head.find(b"\n", at + 1)
            before, colon, value = head[at + 1 : end if end >= 0 else len(head)].partition(b":")
            if colon and len(before.rstrip()) == len(name):
                headers[name] = value.decode("utf-8", "replace").strip()
                break
            at = lower.find(mark, at + 1)
    return Response(int(status[1]), headers, body)


def decoded_body(response: Response, limit: int) -> tuple[bytes | memoryview, str | None]:
    """(the body with its encodings undone, what went wrong or None); never more than `limit` bytes.

    A body without encodings is given back as it is, uncopied.

    Archives often keep the header of an encoding that they have already undone; a body that does not look encoded
    is therefore taken as it is. When a stream breaks off, what came before is returned with the problem.
    """
    body, problem = response.body, None
    chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
    codings = response.headers.get("content-encoding", "").lower()
    if chunked or codings:
        body = bytes(body)
        body, problem = _unchunk(body) if chunked else (body, None)
    for name in (coding.strip() for coding in reversed(codings.split(","))):
        if name in ("gzip", "x-gzip", "deflate", "br", "zstd") and body and problem is None:
            body, problem = _inflate(bytes(body), name, limit)
    if len(body) > limit:
        return body[:limit], f"the body is longer than the limit of {limit} bytes"
    return body, problem


def _unchunk(body: bytes) -> tuple[bytes, str | None]:
    parts: list[bytes] = []
    at = 0
    while size := _CHUNK_SIZE.match(body, at):
        length = int(size[1], 16)
        if length == 0:
            return b"".join(parts), None
        part = body[size.end() : size.end() + length]
        parts.append(part)
        if len(part) < length:
            return b"".join(parts), f"the last chunk has {len(part)} of {length} bytes"
        at = size.end() + length
        while body[at : at + 1] in (b"\r", b"\n"):
            at += 1
    if not parts:
        return body, None
    if at >= len(body):
        return b"".join(parts), "the closing chunk is missing"
    return b"".join(parts), f"a chunk header at byte {at} is not one"


def _inflate(body: bytes, name: str, limit: int) -> tuple[bytes, str | None]:
    if name in ("br", "zstd"):
        return _inflate_arrow(body, "brotli" if name == "br" else "zstd", limit)
    if name == "deflate":
        # zlib format by the standard, raw deflate from some servers
        decoder = zlib.decompressobj(
            15 if body[0] & 15 == 8 and len(body) > 1 and not (body[0] * 256 + body[1]) % 31 else -15
        )
    elif body[:2] != b"\x1f\x8b":
        return body, None
    else:
        decoder = zlib.decompressobj(31)
    parts: list[bytes] = []
    left, data = limit + 1, body
    try:
        while data and left > 0:
            parts.append(decoder.decompress(data, left))
            left -= len(parts[-1])
            data = decoder.unconsumed_tail
            if decoder.eof:
                data = decoder.unused_data
                if data[:2] != b"\x1f\x8b":
                    break
                decoder = zlib.decompressobj(31)
    except zlib.error as error:
        if not any(parts):
            return (body, None) if name == "deflate" else (b"", f"{name}: {error}")
        return b"".join(parts), f"{name}: {error}"
    if left > 0 and not decoder.eof:
        return b"".join(parts), f"the {name} body is cut off"
    return b"".join(parts), None


def _inflate_arrow(body: bytes, codec: str, limit: int) -> tuple[bytes, str | None]:
    import pyarrow as pa

    parts: list[bytes] = []
    left = limit + 1
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            while left > 0 and (part := stream.read(min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
    except (OSError, pa.ArrowException) as error:
        if not parts:
            # already undone: text where compressed data should be
            text = body.lstrip()[:1] in (b"<", b"{")
            return (body, None) if text else (b"", f"{codec}: {error}")
        return b"".join(parts), f"{codec}: {error}"
    return b"".join(parts), None
