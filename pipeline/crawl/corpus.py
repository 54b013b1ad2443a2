"""`crawl.corpus`: reads documents that are already text: JSON lines, Parquet, CSV, TSV or plain text files."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from cluster import storage
from cluster.errors import RecipeError, nearest
from pipeline.crawl import inputs, parquet
from pipeline.crawl.damage import DAMAGED, is_damage
from pipeline.crawl.json_array import elements, is_array
from pipeline.crawl.rows import Rows, timestamp
from pipeline.schema import DOCUMENT, Row, document_id
from pipeline.step import Source, Verdict

if TYPE_CHECKING:
    from pipeline.run import StageRun

_COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "xz": "xz", "bz2": "bz2"}
_FORMATS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "parquet": "parquet", "txt": "text", "md": "text"}
_FORMATS |= {"csv": "csv", "tsv": "tsv"}
_TYPES = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64()}

_HIDDEN = re.compile(r"(^|/)(\.[^/]*|_delta_log|_temporary)/")
_ABOUT = ("readme", "license", "licence")

_PIECE = 1 << 20


class Corpus(Source):
    """Documents from JSONL, JSON arrays, CSV and TSV (plain, gz, zst, xz, bz2), Parquet or text (a file is a document).

    The documents of other runs are such a corpus: `{path: "runs/{web,code}/documents/*.parquet", id_field: doc_id,
    source_field: source}` puts two together, each made by its own recipe, and `why` finds them by the same doc_id.
    What other systems leave beside the data is passed over: `_SUCCESS`, `.part-0.crc`, `_delta_log/`, folders that
    begin with a dot (`hf download` makes one), README and LICENSE where the other files are tables or JSON.
    The first line of a CSV or TSV file names its columns; quoted fields may hold line ends (RFC 4180).

    A line that is no JSON object, or has no text, is a failed row that names the line; so is damage in a compressed or
    Parquet file, with what it costs. Large plain JSONL files are
    read in byte ranges and Parquet files by row groups; identities come from the byte offset or row number in the
    file and do not depend on the split.
    """

    gives: ClassVar[Row] = Row.DOCUMENT

    path: str | tuple[str, ...] = Field(description="file, folder, glob or a list of these; local or s3://")
    format: str = Field("auto", pattern="^(auto|jsonl|parquet|csv|tsv|text)$", description="auto: by the file's name")
    text_field: str = Field(
        "text",
        description="field with the text (a list or object becomes JSON); a dot reaches into objects; . is all of it",
    )
    id_field: str | None = Field(
        None, description="field whose value replaces file and position in identities; 16 bytes are the doc_id itself"
    )
    url_field: str | None = Field("url", description="field with the URL, null when it is absent")
    date_field: str | None = Field(
        "date", description="field with an ISO 8601 date or a Unix time, null when it is absent"
    )
    title_field: str | None = Field("title", description="field with the title")
    language_field: str | None = Field("language", description="field with the language")
    keep: dict[str, Literal["text", "number", "integer"]] = Field(
        {}, description="other fields to carry along, as columns of these types: {edu_score: number}"
    )
    source_field: str | None = Field(None, description="field with the name of the corpus, for mixing")
    source: str = Field("corpus", description="name of the corpus where no field gives it")
    split_bytes: int = Field(128 << 20, ge=1 << 10, description="larger files are read by several tasks")
    max_document_bytes: int = Field(64 << 20, gt=0, description="longer lines or files are failed rows")

    def check(self) -> None:
        files = self._files()
        inputs.check(self.step_name(), self.path, files)
        if taken := sorted(set(self.keep) & set(DOCUMENT.names)):
            raise RecipeError(f"crawl.corpus: keep cannot name {taken[0]}, a column that every document has")
        for _, entry in files:
            if self.format == "auto" and self._format(entry.path) is None:
                raise RecipeError(
                    f"crawl.corpus: cannot tell the format of '{entry.path}'; known endings are "
                    f"{', '.join(sorted(_FORMATS))} (and .gz, .zst, .xz, .bz2), or set format"
                )
        entry = files[0][1]
        if self._format(entry.path) == "parquet":
            names = parquet.columns(entry.path)
            if names is not None and self.text_field != "." and self.text_field.partition(".")[0] not in names:
                raise RecipeError(
                    f"crawl.corpus: '{entry.path}' has no column '{self.text_field}'{nearest(self.text_field, names)}"
                )

    def _files(self) -> list[inputs.File]:
        """The files to read, without what is named as no data: `_SUCCESS`, `.part-0.crc`, a README beside tables."""
        found = [f for f in inputs.find(self.path) if not _HIDDEN.search(f[0])]
        found = [f for f in found if self._format(f[1].path) or f[0].rpartition("/")[2][:1] not in ("_", ".")]
        if self.format != "auto" or all(self._format(f[1].path) in ("text", None) for f in found):
            return found
        return [f for f in found if f[0].rpartition("/")[2].partition(".")[0].lower() not in _ABOUT]

    def _format(self, path: str) -> str | None:
        if self.format != "auto":
            return self.format
        parts = path.rpartition("/")[2].lower().split(".")
        if parts[-1] in _COMPRESSIONS:
            parts.pop()
        return _FORMATS.get(parts[-1])

    def input_identity(self) -> list[Any]:
        return inputs.identity(self._files())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = []
        for key, entry in self._files():
            task = {"path": entry.path, "key": key, "bytes": entry.size, "format": self._format(entry.path)}
            if task["format"] == "parquet":
                tasks += [task | piece for piece in parquet.pieces(entry.path, self.split_bytes)]
            elif task["format"] == "jsonl" and _compression(entry.path) is None and not self._whole(entry):
                edges = [*range(0, max(entry.size, 1), self.split_bytes), entry.size]
                tasks += [
                    task | {"start": start, "end": end, "bytes": end - start}
                    for start, end in itertools.pairwise(edges)
                ]
            else:
                tasks.append(task)
        return inputs.grouped(tasks)

    def _whole(self, entry: storage.Entry) -> bool:
        """Whether a large file cannot be cut at its line ends."""
        if entry.size <= self.split_bytes or not _may_be_array(entry.path):
            return False
        with _open(entry.path) as stream:
            return is_array(stream)

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        kept = [pa.field(name, _TYPES[kind]) for name, kind in self.keep.items()]
        rows = Rows(pa.schema([*DOCUMENT, *kept]), self.source)
        readers = {"jsonl": self._lines, "parquet": self._parquet, "text": self._text}
        for file in inputs.each(task):
            for position, content, error in readers.get(file["format"], self._table)(file):
                self._add(rows, file["key"], position, content, error)
                yield from rows.full()
        yield from rows.rest()

    def _add(self, rows: Rows, key: str, position: int, content: dict[str, Any] | bytes, error: str | None) -> None:
        if isinstance(content, bytes):
            row: dict[str, Any] = {"doc_id": document_id(key, position, "", content), "text": ""}
            rows.add(row | {"text": content.decode("utf-8", "replace")}, reason="bad_line", error=f"{key}, {error}")
            return
        text = content if self.text_field == "." else _reach(content, self.text_field)
        if isinstance(text, dict | list):  # a conversation, say: steps such as tokens.chat read it as JSON
            text = _json(text)
        url = _text_or_none(_reach(content, self.url_field))
        body = text if isinstance(text, str) else ""
        row = {
            "doc_id": _identity(_reach(content, self.id_field))
            or document_id(key, position, url or "", body.encode("utf-8", "surrogatepass")),
            "url": url,
            "date": _date(_reach(content, self.date_field)),
            "title": _text_or_none(_reach(content, self.title_field)),
            "language": _text_or_none(_reach(content, self.language_field)),
            "source": _text_or_none(_reach(content, self.source_field)) or self.source,
            "text": body.encode("utf-8", "replace").decode() if not _is_utf8(body) else body,
            **{name: _kept(_reach(content, name), kind) for name, kind in self.keep.items()},
        }
        if not isinstance(text, str):
            rows.add(row, reason="no_text_field", error=f"{key}, the document at {position}: {self._missing(content)}")
        else:
            rows.add(row, reason=None if body.strip() else "empty")

    def _missing(self, content: dict[str, Any]) -> str:
        """What is there instead of a text."""
        holder, _, name = self.text_field.rpartition(".")
        inside = _reach(content, holder) if holder else content
        if not isinstance(inside, dict) or name not in inside:
            return f"no field '{self.text_field}'{nearest(self.text_field, content)}"
        value = inside[name]
        if isinstance(value, bytes):
            return f"field '{self.text_field}' holds bytes that are no UTF-8"
        return f"field '{self.text_field}' holds " + ("null" if value is None else f"a {type(value).__name__}, no text")

    def _lines(self, task: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
        start, end = task.get("start", 0), task.get("end")
        with _open(task["path"]) as stream:
            if not start and _may_be_array(task["path"]) and is_array(stream):
                yield from self._elements(stream)
                return
            for offset, line in _lines_between(stream, start, end, self.max_document_bytes):
                if isinstance(line, Exception):
                    yield (
                        offset,
                        b"",
                        f"the compressed stream is damaged {offset} bytes in, what follows is lost: {line}",
                    )
                    return
                where = f"byte {offset}"
                if not line.strip():
                    continue
                if len(line) > self.max_document_bytes:
                    yield offset, line[:1024], f"the line at {where} is longer than {self.max_document_bytes} bytes"
                    continue
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield offset, line, f"the line at {where} is not JSON: {error}"
                    continue
                if isinstance(content, dict):
                    yield offset, content, None
                else:
                    yield offset, line, f"the line at {where} is a JSON {type(content).__name__}, not an object"

    def _elements(self, stream: Any) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
        number = -1
        try:
            for number, content, error in elements(stream, self.max_document_bytes):
                if error is None and not isinstance(content, dict):
                    error = f"element {number} is a JSON {type(content).__name__}, not an object"
                    content = json.dumps(content).encode()
                yield number, content, error
        except DAMAGED as error:
            if not is_damage(error):
                raise
            yield number + 1, b"", f"the compressed stream is damaged behind element {number}: {error}"

    def _parquet(self, task: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
        fields = (self.text_field, self.id_field, self.url_field, self.date_field, self.title_field)
        wanted = {f.partition(".")[0] for f in (*fields, self.language_field, self.source_field, *self.keep) if f}
        yield from parquet.rows_of(task, None if self.text_field == "." else wanted)

    def _table(self, task: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
        from pipeline.crawl.table import rows_of

        with _open(task["path"]) as stream:
            yield from rows_of(stream, "," if task["format"] == "csv" else "\t", self.max_document_bytes)

    def _text(self, task: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
        from pipeline.extract.encoding import decode

        data = bytearray()
        try:
            with _open(task["path"]) as stream:
                while len(data) <= self.max_document_bytes and (piece := stream.read(_PIECE)):
                    data += piece
        except DAMAGED as error:
            if not is_damage(error):
                raise
            yield 0, bytes(data[:1024]), f"the compressed stream is damaged {len(data)} bytes in: {error}"
            return
        if len(data) > self.max_document_bytes:
            yield 0, bytes(data[:1024]), f"the file is longer than {self.max_document_bytes} bytes"
            return
        content: dict[str, Any] = {}
        for part in reversed(self.text_field.split(".")):
            content = {part: content or decode(bytes(data))[0]}
        yield 0, content, None


def _may_be_array(path: str) -> bool:
    return ".json" in (path[-5:].lower(), path.rpartition(".")[0][-5:].lower() if _compression(path) else "")


def _compression(path: str) -> str | None:
    return _COMPRESSIONS.get(path.rpartition(".")[2].lower())


def _open(path: str) -> Any:
    """A buffered stream of the uncompressed bytes."""
    raw, compression = storage.open_read(path), _compression(path)
    if compression in ("gzip", "xz", "bz2"):
        # these give what comes before damage; Arrow's gzip stream loses the block that it was reading
        return {"gzip": gzip, "xz": lzma, "bz2": bz2}[compression].open(raw, "rb")
    return io.BufferedReader(pa.CompressedInputStream(raw, compression) if compression else raw, 1 << 18)


def _lines_between(stream: Any, start: int, end: int | None, longest: int) -> Iterator[tuple[int, bytes | Exception]]:
    """(offset, line) of the lines that begin in [start, end); a longer line comes cut at `longest` + 1 bytes.

    Damage in the compressed stream stands in place of a line, and is the last.
    """
    at = start
    if start:
        stream.seek(start - 1)
        at = start - 1
        while piece := stream.readline(1 << 20):
            at += len(piece)
            if piece.endswith(b"\n"):
                break
    while end is None or at < end:
        offset = at
        try:
            line = piece = stream.readline(longest + 1)
            if not line:
                return
            at += len(line)
            while not piece.endswith(b"\n") and (piece := stream.readline(1 << 20)):
                at += len(piece)
        except DAMAGED as error:
            if not is_damage(error):
                raise
            yield offset, error
            return
        yield offset, line


def _reach(content: dict[str, Any], path: str | None) -> Any:
    value: Any = content
    for part in (path or "").split(".") if path else ():
        value = value.get(part) if isinstance(value, dict) else None
    return value if path else None


def _identity(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        return value if len(value) == 16 else document_id("", 0, "id:", value)
    text = _text_or_none(value)
    return None if text is None else document_id("", 0, "id:" + text, b"")


def _date(value: Any) -> datetime | None:
    """ISO 8601 with or without separators, or seconds (milliseconds, microseconds) since 1970."""
    digits = str(int(value)) if isinstance(value, float) and value == value // 1 else str(value).strip()
    if not digits.isascii() or not digits.isdecimal() or isinstance(value, bool):
        return timestamp(_text_or_none(value))
    if len(digits) in (8, 14) and digits[:2] in ("19", "20"):
        return timestamp(digits[:8] + ("T" + digits[8:] if digits[8:] else ""))
    scale = {9: 1, 10: 1, 13: 10**3, 16: 10**6}.get(len(digits))
    return datetime.fromtimestamp(int(digits) // scale, UTC) if scale else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _kept(value: Any, kind: str) -> Any:
    """A value of another field as its column's type; None for one that is none."""
    if value is None:
        return None
    if kind == "text":
        return _text_or_none(_json(value) if isinstance(value, dict | list | bool) else value)
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return None
    try:
        number = float(value) if kind == "number" else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if kind == "number" or -(1 << 63) <= number < 1 << 63 else None


def _text_or_none(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return text if _is_utf8(text) else text.encode("utf-8", "replace").decode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
