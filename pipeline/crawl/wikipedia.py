"""`crawl.wikipedia`: articles of MediaWiki XML dumps (bz2, gz or plain) as text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote
from xml.parsers import expat

import pyarrow as pa
from pydantic import Field

from pipeline.crawl import inputs, remote
from pipeline.crawl.damage import DAMAGED, is_damage
from pipeline.crawl.rows import Rows, timestamp
from pipeline.schema import DOCUMENT, Row, document_id
from pipeline.step import Source, Verdict

if TYPE_CHECKING:
    from pipeline.run import StageRun

_KEPT = {"title", "ns", "id", "timestamp", "text", "model", "base", "dbname"}
_REDIRECT = "redirect"


class Wikipedia(Source):
    """Every page of a dump (`…-pages-articles.xml.bz2`, multistream or not) as a row, its wikitext made plain.

    Pages outside `namespaces` are removed as `namespace`, redirects as `redirect`, pages that are no wikitext as
    `content_model`, those without text as `empty`, too long ones as `too_large`; where the file is damaged the pages
    before it are there and the damage is a failed row. The language is the one in the dump's own address.
    """

    gives: ClassVar[Row] = Row.DOCUMENT

    path: str | tuple[str, ...] = Field(description="dump file, folder, glob or http(s):// URL, or a list of these")
    source: str = Field("wikipedia", description="name of the corpus, for mixing")
    namespaces: tuple[int, ...] = Field((0,), description="numbers of the namespaces that are kept; 0 is articles")
    max_page_bytes: int = Field(16 << 20, gt=0, description="pages with longer wikitext are removed as too_large")

    def check(self) -> None:
        inputs.check(self.step_name(), self.path, self._files())

    def _files(self) -> list[inputs.File]:
        return inputs.find(self.path, remote.find)

    def input_identity(self) -> list[Any]:
        return inputs.identity(self._files())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        return [{"path": entry.path, "key": key, "bytes": entry.size} for key, entry in self._files()]

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        from pipeline.extract.wikitext import plain

        rows, key = Rows(DOCUMENT, self.source), task["key"]
        with _open(task["path"]) as stream:
            for number, (page, problem) in enumerate(pages_of(stream, self.max_page_bytes)):
                wikitext = page.get("text", "")
                reason = None if problem else self._reason(page, wikitext)
                text = plain(wikitext) if reason is None and not problem else ""
                if reason is None and not problem and not text:
                    reason = "empty"
                title = page.get("title")
                base = page.get("base", "").rpartition("/")[0]
                row = {
                    "doc_id": document_id(key, number, title or "", wikitext.encode("utf-8", "replace")),
                    "url": f"{base}/{quote(title.replace(' ', '_'), safe='/:,()')}" if base and title else None,
                    "date": timestamp(page.get("timestamp")),
                    "title": title,
                    "language": _language(page.get("base", "")),
                    "text": text,
                }
                rows.add(row, reason=reason, error=f"{key}, page {number}: {problem}" if problem else None)
                yield from rows.full()
        yield from rows.rest()

    def _reason(self, page: dict[str, str], wikitext: str) -> str | None:
        if page.get("ns", "0") not in {str(number) for number in self.namespaces}:
            return "namespace"
        if _REDIRECT in page:
            return "redirect"
        if page.get("model", "wikitext") != "wikitext":
            return "content_model"
        return "too_large" if len(wikitext) > self.max_page_bytes else None


def pages_of(stream: Any, longest: int) -> Iterator[tuple[dict[str, str], str | None]]:
    """(fields of a page, None) for every page, at the end ({}, what is wrong) if the file breaks off.

    Of text longer than `longest` characters a little more than that is given. Fields: title, ns, id, timestamp, text,
    model, base (address of the main page), and redirect if it is one.
    """
    pages: list[dict[str, str]] = []
    site: dict[str, str] = {}
    page: dict[str, str] = {}
    path: list[str] = []
    data: list[str] = []
    size = 0

    def start(name: str, _: object) -> None:
        nonlocal size
        path.append(name)
        if name == "page":
            page.clear()
        elif name == _REDIRECT:
            page[name] = ""
        data.clear()
        size = 0

    def characters(text: str) -> None:
        nonlocal size
        if path and path[-1] in _KEPT and size <= longest:
            data.append(text)
            size += len(text)

    def end(name: str) -> None:
        path.pop()
        if name == "page":
            pages.append(site | page)
        elif name in _KEPT and path and path[-1] in ("page", "revision"):
            if not (name == "id" and path[-1] == "revision"):
                page[name] = "".join(data)
        elif name in ("base", "dbname"):
            site[name] = "".join(data)
        data.clear()

    def refuse(*_: object) -> None:
        raise ValueError("the dump declares entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    try:
        while chunk := stream.read1(1 << 18):  # read would lose what came before damage
            parser.Parse(chunk, False)
            yield from ((found, None) for found in pages)
            pages.clear()
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError, *DAMAGED) as error:
        if not isinstance(error, (expat.ExpatError, ValueError)) and not is_damage(error):
            raise
        yield from ((found, None) for found in pages)
        yield {}, f"the dump is damaged here, what follows is lost: {error}"


def _language(base: str) -> str | None:
    """`de` of https://de.wikipedia.org/wiki/…"""
    code = base.partition("://")[2].partition(".")[0].partition("-")[0]
    return code if 2 <= len(code) <= 3 and code.isascii() and code.isalpha() else None


def _open(path: str) -> Any:
    raw = remote.open_read(path)
    head = raw.read(6)
    raw.seek(0)
    if head[:3] == b"BZh":
        return bz2.open(raw, "rb")
    if head[:2] == b"\x1f\x8b":
        return gzip.open(raw, "rb")
    return lzma.open(raw, "rb") if head == b"\xfd7zXZ\x00" else io.BufferedReader(raw)
