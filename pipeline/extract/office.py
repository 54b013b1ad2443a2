"""Text of files that are no web pages: PDF, DOCX, ODT, EPUB; what is read of each is bounded."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.parsers import expat

from pipeline.extract import pdf

MAX_UNPACKED = 64 << 20
MAX_CHARACTERS = 16 << 20

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
TYPES = {
    "application/pdf": "pdf",
    DOCX: "docx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/epub+zip": "epub",
}
"""Media types that `text_of` reads."""


_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, expat.ExpatError, KeyError, ValueError, EOFError,
    RuntimeError, OSError,
)  # fmt: skip
"""What the readers raise for damaged or encrypted files."""


class Unreadable(Exception):
    """The file is damaged, encrypted or larger than the limits."""


class Parts(NamedTuple):
    """Text and title; `no_text_layer` is true for a PDF of pictures."""

    text: str
    title: str | None = None
    no_text_layer: bool = False


def text_of(data: bytes, kind: str) -> Parts:
    """The text of a file of kind pdf, docx, odt or epub. Raises Unreadable."""
    readers: dict[str, Callable[[bytes], Parts]] = {"pdf": _pdf, "docx": _docx, "odt": _odt, "epub": _epub}
    try:
        return readers[kind](data)
    except _DAMAGE as error:
        raise Unreadable(f"{kind}: {error}") from error


def _pdf(data: bytes) -> Parts:
    try:
        pages, title = pdf.READER.read(data)
    except pdf.Broken as error:
        raise Unreadable(f"pdf: {error}") from error
    joined = _paragraphs("\n\n".join(pages))
    return Parts(joined, title, no_text_layer=not joined and bool(pages))


def _paragraphs(text: str) -> str:
    """Lines of a page joined to paragraphs: a line that ends far from a stop goes on in the next one."""
    text = re.sub(r"(?<=\w)[-\u00ad]\n(?=[a-zß-ÿ])", "", text)
    text = re.sub(r"(?<=[^\n.!?。！？:：;])\n(?=[^\n\d•·–-])(?=\S*[a-zß-ÿ一-鿿぀-ヿ])", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > MAX_UNPACKED:
        raise Unreadable(f"{name} unpacks to {info.file_size} bytes, the limit is {MAX_UNPACKED}")
    with archive.open(info) as stream:
        data = stream.read(MAX_UNPACKED + 1)
    if len(data) > MAX_UNPACKED:
        raise Unreadable(f"{name} unpacks to more than {MAX_UNPACKED} bytes")
    return data


def _xml_text(data: bytes, breaks: dict[str, str], texts: frozenset[str] | None, skip: frozenset[str]) -> str:
    """Character data of an XML file; `breaks` maps the local name of an element to what stands behind it."""
    out: list[str] = []
    wanted = [0 if texts else 1]
    hidden = [0]
    parser = expat.ParserCreate(namespace_separator=" ")

    def start(name: str, _: object) -> None:
        local = name.rpartition(" ")[2]
        wanted[0] += texts is not None and local in texts
        hidden[0] += local in skip

    def end(name: str) -> None:
        local = name.rpartition(" ")[2]
        wanted[0] -= texts is not None and local in texts
        hidden[0] -= local in skip
        if local in breaks and not hidden[0]:
            out.append(breaks[local])

    def characters(text: str) -> None:
        if wanted[0] > 0 and not hidden[0]:
            out.append(text)

    def refuse(*_: object) -> None:
        raise Unreadable("declares entities, which documents have no need of")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    parser.Parse(data, True)
    return re.sub(r"(?<![ \t])[ \t]*\n{2,}[ \t]*", "\n\n", "".join(out)).strip()


def _docx(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        breaks = {"p": "\n", "tab": "\t", "br": "\n", "tc": " | ", "tr": "\n"}
        return Parts(_xml_text(_member(archive, "word/document.xml"), breaks, frozenset({"t"}), frozenset({"delText"})))


def _odt(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        breaks = {"p": "\n", "h": "\n\n", "tab": "\t", "line-break": "\n", "s": " "}
        skip = frozenset({"tracked-changes", "annotation"})
        return Parts(_xml_text(_member(archive, "content.xml"), breaks, frozenset({"p", "h"}), skip))


def _epub(data: bytes) -> Parts:
    from pipeline.extract.main_content import whole_text

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        container = _member(archive, "META-INF/container.xml").decode("utf-8", "replace")
        found = re.search(r'full-path="([^"]+)"', container)
        if found is None:
            raise Unreadable("epub: no package file is named")
        package = _member(archive, found[1]).decode("utf-8", "replace")
        folder = found[1].rpartition("/")[0]
        title = re.search(r"<dc:title[^<>]*>([^<]+)<", package)
        chapters, size, unpacked = [], 0, 0
        for name in _spine(package):
            path = f"{folder}/{name}" if folder else name
            if path in archive.NameToInfo:
                chapter = _member(archive, path)
                unpacked += len(chapter)
                if unpacked > MAX_UNPACKED:
                    raise Unreadable(f"epub: its chapters unpack to more than {MAX_UNPACKED} bytes")
                chapters.append(whole_text(chapter))
                size += len(chapters[-1])
            if size > MAX_CHARACTERS:
                break
    return Parts("\n\n".join(filter(None, chapters)), title[1].strip() if title else None)


def _spine(package: str) -> Iterator[str]:
    from urllib.parse import unquote

    items = {}
    for item in re.findall(r"<item\s[^<>]+>", package):
        name, target = re.search(r'\bid="([^"]+)"', item), re.search(r'\bhref="([^"]+)"', item)
        if name and target:
            items[name[1]] = unquote(target[1])
    for reference in re.findall(r'<itemref\s[^<>]*?\bidref="([^"<]+)"', package):
        if reference in items:
            yield items[reference]
