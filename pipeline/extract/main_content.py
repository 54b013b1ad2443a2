"""`extract.main_content`: the text of a web page without what surrounds it, RECORD → DOCUMENT."""

from __future__ import annotations

import html as entities
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from cluster.errors import RecipeError
from pipeline.extract import office
from pipeline.extract.encoding import charset_of, decode
from pipeline.schema import DOCUMENT, Row
from pipeline.step import Documents, Transform, Verdict

Engine = Literal["corpusmill", "trafilatura", "resiliparse"]

MAX_BYTES = 16 << 20
"""Pages are read up to this length; what lies behind it is not looked at."""

_ARTICLE_BODY = re.compile(r'"articleBody"\s*:\s*("(?:[^"\\]|\\.){200,}")')
_DESCRIPTION = re.compile(
    r'<meta\s[^>]{0,200}?(?:name|property)=["\'](?:og:)?description["\'][^>]{0,100}?content="([^"]{40,})"', re.I
)
_SPACES = re.compile("[ \u00a0]*\u00a0[ \u00a0]*")


class ExtractedPage(NamedTuple):
    """What was found in a page; `text` is empty when there is none, `published` is YYYY-MM-DD."""

    text: str
    title: str | None = None
    language: str | None = None
    published: str | None = None
    encoding: str = "utf-8"


def extract(
    html: bytes, *, url: str | None = None, encoding: str | None = None, engine: Engine = "corpusmill"
) -> ExtractedPage:
    """The main text of an HTML page: paragraphs, headings, lists, tables and code as lines of text.

    `encoding` is the charset that the server stated. Never raises for what is in the page. Time and memory are
    linear in the page's length, of which at most MAX_BYTES are read.
    """
    text, codec = decode(html[:MAX_BYTES], encoding)
    if engine == "trafilatura":
        return _by_trafilatura(text, url, codec)
    if engine == "resiliparse":
        return _by_resiliparse(text, codec)
    from pipeline.extract.model import load
    from pipeline.extract.page_meta import meta_columns, published
    from pipeline.kernels.html_scan import scan
    from pipeline.kernels.html_text import text_of

    data = html if codec == "utf-8" and len(html) <= MAX_BYTES else text.encode("utf-8", "replace")
    page = scan(data)
    main = ""
    if len(page.block_element):
        chosen = load().chosen(page, meta_columns(data, url))
        main = _plain(text_of(data, page, chosen))
    if len(main) < 200:
        main = max(main, _from_metadata(text), key=len) if len(main) < 60 else main
    title, language = (_span(data, page.spans[i], page.spans[i + 1]) for i in (0, 2))
    return ExtractedPage(main, title, _language(language), published(data), codec)


def whole_text(html: bytes) -> str:
    """All text of an HTML file, for chapters of books and other pages without surroundings."""
    import numpy as np

    from pipeline.kernels.html_scan import scan
    from pipeline.kernels.html_text import text_of

    data = decode(html[:MAX_BYTES])[0].encode("utf-8", "replace")
    page = scan(data)
    return _plain(text_of(data, page, np.ones(len(page.block_element), np.bool_)))


def _plain(text: bytes) -> str:
    out = text.decode("utf-8", "replace")
    out = entities.unescape(out) if "&" in out else out
    return (_SPACES.sub(" ", out) if "\u00a0" in out else out).strip()


def _span(data: bytes, start: int, end: int) -> str | None:
    return (
        (" ".join(entities.unescape(data[start:end].decode("utf-8", "replace")).split()) or None)
        if start >= 0
        else None
    )


def _language(tag: str | None) -> str | None:
    code = re.split("[-_]", (tag or "").strip().lower())[0]
    return code if 2 <= len(code) <= 3 and code.isascii() and code.isalpha() else None


def _from_metadata(text: str) -> str:
    """The text that a page without one in its markup states elsewhere: schema.org articleBody, its description."""
    found = _ARTICLE_BODY.search(text)
    if found:
        try:
            return " ".join(str(json.loads(found[1], strict=False)).split())
        except ValueError:
            pass
    described = _DESCRIPTION.search(text[: 1 << 18])
    return " ".join(entities.unescape(described[1]).split()) if described else ""


def _by_trafilatura(text: str, url: str | None, codec: str) -> ExtractedPage:
    from trafilatura import bare_extraction

    found = bare_extraction(text, url=url, with_metadata=True)
    if found is None:
        return ExtractedPage("", encoding=codec)
    return ExtractedPage(found.text or "", found.title, _language(found.language), found.date, codec)


def _by_resiliparse(text: str, codec: str) -> ExtractedPage:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(text)
    root = tree.document.query_selector("html") if tree.document else None
    language = root.getattr("lang") if root else None
    main = extract_plain_text(tree, main_content=True, alt_texts=False, preserve_formatting=True)
    return ExtractedPage(main.strip(), (tree.title or "").strip() or None, _language(language), None, codec)


def extract_any(
    payload: bytes, content_type: str | None, *, url: str | None = None, engine: Engine = "corpusmill"
) -> tuple[ExtractedPage, str | None, str | None]:
    """(page, reason, error) of a file of any media type that is read; reason and error where it cannot be."""
    media = (content_type or "").partition(";")[0].strip().lower()
    charset = charset_of(content_type)
    if media in office.TYPES:
        return _by_office(payload, office.TYPES[media])
    if media == "text/plain":
        text, codec = decode(payload, charset)
        return ExtractedPage(text.strip("\r\n"), encoding=codec), None, None
    return extract(payload, url=url, encoding=charset, engine=engine), None, None


def _by_office(data: bytes, kind: str) -> tuple[ExtractedPage, str | None, str | None]:
    """(page, reason, error) of a PDF, DOCX, ODT or EPUB file."""
    try:
        found = office.text_of(data, kind)
    except office.Unreadable as error:
        return ExtractedPage(""), "unreadable", str(error)
    return ExtractedPage(found.text, found.title), "no_text_layer" if found.no_text_layer else None, None


class MainContent(Transform):
    """Main text of HTML pages, and the text of PDF, DOCX, ODT and EPUB files; plain text passes through as it is.

    Rows without text are removed as `no_text`, scanned PDFs as `no_text_layer`; files that cannot be opened fail as
    `unreadable`.
    """

    takes: ClassVar[Row] = Row.RECORD

    engine: Engine = Field("corpusmill", description="corpusmill, or trafilatura or resiliparse to compare with")
    min_characters: int = Field(1, ge=1, description="pages with less text are removed as no_text")

    def check(self) -> None:
        if self.engine == "trafilatura":
            import importlib.util

            if importlib.util.find_spec("trafilatura") is None:
                raise RecipeError(
                    "extract.main_content: engine trafilatura needs: pip install 'corpusmill[trafilatura]'"
                )

    def warm(self, artifacts: Mapping[str, str]) -> None:
        extract(b"<html><body><p>warm</p></body></html>", engine=self.engine)

    def transform(self, docs: Documents) -> tuple[pa.RecordBatch, Verdict | None]:
        columns: dict[str, list[Any]] = {"title": [], "language": [], "text": []}
        reasons: list[str | None] = []
        errors: dict[int, str] = {}
        given = (docs.column(name).to_pylist() for name in ("payload", "content_type", "url"))
        for payload, content_type, url in zip(*given, strict=True):
            page, reason, error = extract_any(payload or b"", content_type, url=url, engine=self.engine)
            for name in columns:
                columns[name].append(getattr(page, name))
            reasons.append(reason or (None if len(page.text.strip()) >= self.min_characters else "no_text"))
            if error:
                errors[len(reasons) - 1] = error
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else docs.column(field.name)
            for field in DOCUMENT
        ]
        verdict = Verdict.because(reasons) if any(reasons) else None
        for row, error in errors.items():
            assert verdict is not None
            verdict.fail(row, error, "unreadable")
        return pa.RecordBatch.from_arrays(arrays, schema=DOCUMENT), verdict
