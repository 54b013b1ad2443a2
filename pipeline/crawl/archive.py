"""Records of WARC and ARC files: fastwarc reads healthy files, a slower reader of our own salvages damaged ones.

fastwarc stops at the first damage. `records` then starts the salvaging reader from the beginning of the file,
skips what was already given, and goes on behind the damage: at the next gzip member, zstd frame or `WARC/1.`
line. ARC files are always read by the salvaging reader. Both number the records in order of the file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 20
_MAX_HEADER = 1 << 18
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_NEXT_WARC = re.compile(rb"^WARC/[01]\.\d+\r?$", re.M)
_ARC_LINE = re.compile(rb"^\S+ [0-9A-Fa-f.:]+ \d{8,14} \S+(?: \S+)* \d+\r?$", re.M)
_RECORD_START = re.compile(rb"\s*(?:WARC/[01]\.\d|filedesc:|" + _ARC_LINE.pattern + rb")", re.M)
_WARC_HEAD = re.compile(rb"WARC/[01]\.\d+\r?\n(?i:WARC|Content)-[\w-]+:")
_PLAIN_START = re.compile(_WARC_HEAD.pattern + rb"|filedesc:\S+ \S+ \d{8,14} |" + _ARC_LINE.pattern, re.M)
_MEMBERS_TRIED = 64
"""A magic number inside of compressed bytes is found by chance once in 16 MB; damaged members come in rows."""

FIELDS = (
    "warc-type",
    "warc-target-uri",
    "warc-date",
    "content-type",
    "warc-payload-digest",
    "warc-truncated",
)
"""The header fields that a RawRecord carries."""

_FIELD = {name: name for name in FIELDS} | {
    "WARC-Type": "warc-type",
    "WARC-Target-URI": "warc-target-uri",
    "WARC-Date": "warc-date",
    "Content-Type": "content-type",
    "WARC-Payload-Digest": "warc-payload-digest",
    "WARC-Truncated": "warc-truncated",
}

_UNUSED = frozenset(
    ("Content-Length", "WARC-Record-ID", "WARC-Block-Digest", "WARC-IP-Address", "WARC-Concurrent-To",
     "WARC-Warcinfo-ID", "WARC-Identified-Payload-Type", "WARC-Refers-To", "WARC-Protocol", "WARC-Cipher-Suite")
)  # fmt: skip

DESCRIPTIVE = ("warcinfo", "request", "metadata")
"""Kinds of records that describe others and hold no resource themselves."""


class RawRecord(NamedTuple):
    """One record of an archive file.

    number   position among the records of the wanted kinds; stretches of damage without a header count -1, -2, …
    headers  FIELDS by lower-case name, absent ones left out; of an ARC record, what WARC would call them
    block    the bytes behind the headers, HTTP head included; cut off at the limit when `size` is larger
    size     length of the block as the file states it
    problem  what is wrong with the record, None for a whole one; a damaged stretch without a readable header has
             no headers and the kind "damage"
    """

    number: int
    headers: dict[str, str]
    block: bytes
    size: int
    problem: str | None = None

    @property
    def kind(self) -> str:
        return self.headers.get("warc-type", "damage").lower()


def records(source: pa.NativeFile, *, max_bytes: int, skip: Collection[str] = DESCRIPTIVE) -> Iterator[RawRecord]:
    """The records of an archive that is open at its beginning; blocks are cut at `max_bytes`.

    Records of the kinds in `skip` are passed over. Never raises for what is in the file; storage errors pass through.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    done = 0
    if _fastwarc_reads(source):
        source.seek(0)
        wanted = WarcRecordType.any_type
        for kind in skip:
            wanted ^= getattr(WarcRecordType, kind)
        place = 0
        try:
            for record in ArchiveIterator(source, record_types=wanted, parse_http=False):
                place = record.stream_pos
                headers: dict[str, str] = {}
                for name, value in record.headers.items():
                    # the first of repeated headers counts, as the salvaging reader has it
                    if name in _UNUSED:
                        continue
                    if (known := _FIELD.get(name) or _FIELD.get(name.lower())) and known not in headers:
                        headers[known] = value
                size = record.content_length
                keep = size if size < max_bytes else max_bytes
                block = record.reader.read(keep) if keep else b""
                if len(block) < keep:
                    break
                yield RawRecord(done, headers, block, size)
                done += 1
            else:
                if not _ends_within(source, place):
                    return
        except (OSError, ValueError):
            pass
    source.seek(0)
    seen = 0
    for raw in salvage(source, max_bytes=max_bytes, skip=skip):
        if seen >= done:
            yield raw
        seen += raw.number >= 0


def is_archive(source: pa.NativeFile) -> bool:
    """Whether a file is a WARC, WET or ARC file, packed or not, by its first record."""
    first = next(filter(None, _plain(source)), b"")
    return bool(_RECORD_START.match(first))


def _ends_within(source: pa.NativeFile, place: int) -> bool:
    """Whether a gzip member at or behind `place` is damaged: at a broken member's header fastwarc may simply end."""
    source.seek(place)
    return source.read(3) == _GZIP and any(chunk is None for chunk in _gunzip(source, place))


def _fastwarc_reads(source: pa.NativeFile) -> bool:
    """False for ARC, and for a damaged beginning: fastwarc then looks for records where none are, and says nothing."""
    head = source.read(1 << 12)
    if head[:3] == _GZIP:
        try:
            head = zlib.decompressobj(31).decompress(head, 1 << 12)
        except zlib.error:
            return False
    elif head[:4] == _ZSTD or _skippable(head):
        return True
    return bool(_WARC_HEAD.match(head))


# -- bytes of a file, uncompressed; None marks a place where data is missing --


def _plain(source: pa.NativeFile) -> Iterator[bytes | None]:
    start, unpack = _container(source)
    if start:
        yield None
    if unpack:
        yield from unpack(source, start)
        return
    source.seek(0)
    while chunk := source.read(_CHUNK):
        yield chunk


def _container(source: pa.NativeFile) -> tuple[int, Callable[[pa.NativeFile, int], Iterator[bytes | None]] | None]:
    """Where the first member is from which a record comes, and what unpacks it; None for an archive of plain text.

    The first bytes may be what is damaged, and then look like another kind: a whole header or a record decides.
    """
    source.seek(0)
    head = source.read(1 << 12)
    if _PLAIN_START.match(head):
        return 0, None
    found: list[tuple[int, Callable[[pa.NativeFile, int], Iterator[bytes | None]]]] = []
    for magic, unpack in ((_GZIP, _gunzip), (_ZSTD, _unzstd)):
        at = _find(source, magic, 0)
        for _ in range(_MEMBERS_TRIED):
            if at < 0:
                break
            if _RECORD_START.match(next(unpack(source, at), None) or b""):
                found.append((at, unpack))
                break
            at = _find(source, magic, at + 1)
    if found:
        return min(found, key=lambda member: member[0])
    return 0, _gunzip if head[:3] == _GZIP else _unzstd if head[:4] == _ZSTD else None


def _find(source: pa.NativeFile, magic: bytes, start: int) -> int:
    """Offset of `magic` at or after `start`, -1 when there is none."""
    source.seek(start)
    tail = b""
    at = start
    while chunk := source.read(_CHUNK):
        data = tail + chunk
        found = data.find(magic)
        if found >= 0:
            return at - len(tail) + found
        at += len(chunk)
        tail = data[-len(magic) + 1 :]
    return -1


def _gunzip(source: pa.NativeFile, start: int) -> Iterator[bytes | None]:
    while start >= 0:
        source.seek(start)
        inflate, fed, waiting = zlib.decompressobj(31), 0, b""
        try:
            while not inflate.eof:
                chunk = waiting or source.read(_CHUNK)
                if not chunk:
                    raise zlib.error("the file ends inside a gzip member")
                fed += 0 if waiting else len(chunk)
                data = inflate.decompress(chunk, _CHUNK)
                waiting = inflate.unconsumed_tail
                if data:
                    yield data
        except zlib.error:
            yield None
            start = _find(source, _GZIP, start + 1)
            continue
        start += fed - len(inflate.unused_data)
        source.seek(start)
        magic = source.read(3)
        if not magic:
            return
        if magic != _GZIP:
            yield None
            start = _find(source, _GZIP, start)


def _unzstd(source: pa.NativeFile, start: int) -> Iterator[bytes | None]:
    import pyarrow as pa

    while start >= 0:
        end = _zstd_frame_end(source, start)
        if end is None:
            yield None
            start = _find(source, _ZSTD, start + 1)
            continue
        source.seek(start)
        frame = source.read(end - start)
        if frame[:4] == _ZSTD:
            try:
                with pa.CompressedInputStream(pa.BufferReader(frame), "zstd") as stream:
                    while chunk := stream.read(_CHUNK):
                        yield chunk
            except (OSError, pa.ArrowException):
                yield None
        source.seek(end)
        if not source.read(1):
            return
        start = end


def _zstd_frame_end(source: pa.NativeFile, start: int) -> int | None:
    """Where the frame at `start` ends, by walking its block headers (RFC 8878); None when it is not whole."""
    source.seek(start)
    head = source.read(18)
    size = source.size()
    if _skippable(head):
        end = start + 8 + int.from_bytes(head[4:8], "little")
        return end if end <= size else None
    if head[:4] != _ZSTD or len(head) < 6:
        return None
    flags = head[4]
    single = flags >> 5 & 1
    content_size = (1 if single else 0, 2, 4, 8)[flags >> 6]
    at = start + 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3] + content_size
    while at + 3 <= size:
        source.seek(at)
        header = source.read(3)
        value = int.from_bytes(header, "little")
        at += 3 + (1 if value >> 1 & 3 == 1 else value >> 3)
        if value & 1:
            return at + (4 if flags >> 2 & 1 else 0)
    return None


def _skippable(head: bytes) -> bool:
    """A zstd frame without data, such as one that holds a dictionary."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5


class _Break(Exception):
    """Data is missing here, or the file ends."""


class _Lines:
    """Lines and blocks from chunks; stops at a break until `resume`."""

    def __init__(self, chunks: Iterator[bytes | None]):
        self._chunks, self._buffer, self._at = chunks, b"", 0
        self.ended = self.broken = False

    def _more(self) -> bool:
        if self.ended or self.broken:
            return False
        chunk = next(self._chunks, b"")
        if chunk is None:
            self.broken = True
            return False
        if not chunk:
            self.ended = True
            return False
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return True

    def resume(self) -> None:
        self.broken = False

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if len(self._buffer) - self._at > _MAX_HEADER or not self._more():
                rest, self._at = (
                    self._buffer[self._at : self._at + _MAX_HEADER],
                    min(len(self._buffer), self._at + _MAX_HEADER),
                )
                if not rest:
                    raise _Break
                return rest
        line, self._at = self._buffer[self._at : end + 1], end + 1
        return line

    def block(self, size: int, keep: int) -> tuple[bytes, int]:
        """(the first `keep` bytes, how many bytes there were) of the next `size` bytes."""
        parts: list[bytes] = []
        got = kept = 0
        while got < size:
            if self._at >= len(self._buffer) and not self._more():
                break
            part = self._buffer[self._at : self._at + size - got]
            self._at += len(part)
            got += len(part)
            if kept < keep:
                parts.append(part[: keep - kept])
                kept += len(parts[-1])
        return b"".join(parts), got

    def push(self, data: bytes) -> None:
        self._buffer, self._at = data + self._buffer[self._at :], 0

    def skip_to(self, start: re.Pattern[bytes]) -> int:
        """Move to the next line that matches; bytes passed over. At a break or the end the rest is passed over."""
        skipped = 0
        while True:
            found = start.search(self._buffer, self._at)
            if found and (found.end() < len(self._buffer) or not self._more()):
                skipped += found.start() - self._at
                self._at = found.start()
                return skipped
            if found:
                continue
            keep = max(self._at, self._buffer.rfind(b"\n") + 1)
            if len(self._buffer) - keep > _MAX_HEADER:
                keep = len(self._buffer)
            skipped += keep - self._at
            self._at = keep
            if not self._more():
                skipped += len(self._buffer) - self._at
                self._at = len(self._buffer)
                return skipped


def salvage(source: pa.NativeFile, *, max_bytes: int, skip: Collection[str] = ()) -> Iterator[RawRecord]:
    """All that can be read of a damaged WARC or ARC file, in order, damage included; cost about 5 times `records`."""
    lines = _Lines(_plain(source))
    number, damages, arc, first = 0, 0, False, True
    while True:
        try:
            line = lines.line()
            while not line.strip():
                line = lines.line()
        except _Break:
            if lines.ended:
                return
            lines.resume()
            damages += 1
            yield RawRecord(-damages, {}, b"", 0, "data missing: the compressed stream is damaged here")
            continue
        if first and line.startswith(b"filedesc:"):
            arc = True
        first = False
        headers: dict[str, str] | None = None
        if line.startswith(b"WARC/"):
            headers = _warc_headers(lines)
        elif _ARC_LINE.match(line.rstrip()):
            headers = _arc_headers(line)
        size = _length(headers)
        if headers is None or size is None:
            lost = len(line) + lines.skip_to(_ARC_LINE if arc else _NEXT_WARC)
            lines.resume()
            damages += 1
            yield RawRecord(-damages, {}, line[:1024], lost, f"no record header here: {lost} bytes passed over")
            continue
        record = _block_of(lines, number, headers, size, max_bytes, arc=not line.startswith(b"WARC/"))
        if record.kind not in skip or record.problem:
            yield record
            number += 1


def _length(headers: dict[str, str] | None) -> int | None:
    text = (headers or {}).get("content-length", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _block_of(
    lines: _Lines, number: int, headers: dict[str, str], size: int, max_bytes: int, *, arc: bool
) -> RawRecord:
    block, got = lines.block(size, max_bytes)
    if got < size:
        lines.resume()
        return RawRecord(number, headers, block, size, f"cut off: {got} of {size} bytes are there")
    if arc or got != len(block):
        return RawRecord(number, headers, block, size)
    # a wrong Content-Length swallows what follows: then the block holds the next record's first line
    try:
        ahead = lines.line()
    except _Break:
        return RawRecord(number, headers, block, size)
    passed = ahead
    while not ahead.strip():
        try:
            ahead = lines.line()
        except _Break:
            ahead = b""
            break
        passed += ahead
    lines.push(passed[len(passed) - len(ahead) :])
    if ahead and not ahead.startswith(b"WARC/") and (inside := _NEXT_WARC.search(block)):
        lines.push(block[inside.start() :] + passed[: len(passed) - len(ahead)])
        block = block[: inside.start()].rstrip(b"\r\n")
        return RawRecord(number, headers, block, size, f"wrong Content-Length {size}: the next record starts inside")
    return RawRecord(number, headers, block, size)


def _warc_headers(lines: _Lines) -> dict[str, str]:
    headers: dict[str, str] = {}
    name, total = "", 0
    try:
        while (line := lines.line()).strip() and total < _MAX_HEADER:
            total += len(line)
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if text[:1] in " \t" and name:
                headers[name] += " " + text.strip()
                continue
            key, colon, value = text.partition(":")
            if colon:
                name = key.strip().lower()
                headers.setdefault(name, value.strip())
    except _Break:
        pass
    return {name: headers[name] for name in (*FIELDS, "content-length") if name in headers}


def _arc_headers(line: bytes) -> dict[str, str]:
    fields = line.decode("utf-8", "replace").split()
    url, stamp = fields[0], fields[2].ljust(14, "0")
    date = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:10]}:{stamp[10:12]}:{stamp[12:14]}Z"
    web = url.startswith(("http:", "https:"))
    return {
        "warc-type": "warcinfo" if url.startswith("filedesc:") else "response",
        "warc-target-uri": url,
        "warc-date": date,
        "content-type": "application/http; msgtype=response" if web else fields[3],
        "content-length": fields[-1],
    }
