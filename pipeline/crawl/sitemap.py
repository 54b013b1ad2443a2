"""Sitemaps (sitemaps.org): URL lists and indexes in XML, gzipped or not, and plain lists of URLs."""

from __future__ import annotations

import contextlib
import zlib
from datetime import datetime
from typing import NamedTuple
from xml.parsers import expat

from pipeline.crawl.rows import timestamp
from pipeline.crawl.url import normalised

MOST_URLS = 50_000
MOST_BYTES = 50 << 20
"""The limits of the protocol."""


class Found(NamedTuple):
    """What a page or a sitemap leads to, normalised, in order, each once."""

    pages: list[str]
    sitemaps: list[str]


def read_sitemap(data: bytes, url: str, modified_since: datetime | None = None) -> Found:
    """The pages that a sitemap names, and the sitemaps that an index names; entries dated before are left out.

    Of a broken file what comes before the break counts. Never raises for what is in the file.
    """
    if data[:2] == b"\x1f\x8b":
        unpack = zlib.decompressobj(31)
        with contextlib.suppress(zlib.error):
            data = unpack.decompress(data, MOST_BYTES)
    data = data[:MOST_BYTES]
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        lines = data.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
        return Found(_unique([line.strip() for line in lines if line.strip()][:MOST_URLS], url), [])
    pages: list[str] = []
    sitemaps: list[str] = []
    fields: dict[str, str] = {}
    text: list[str] = []

    def start(name: str, _: object) -> None:
        text.clear()
        if name.rpartition(" ")[2] in ("url", "sitemap"):
            fields.clear()

    def end(name: str) -> None:
        local = name.rpartition(" ")[2]
        if local in ("loc", "lastmod"):
            fields.setdefault(local, "".join(text).strip())
        elif local in ("url", "sitemap") and fields.get("loc"):
            changed = timestamp(fields.get("lastmod"))
            old = modified_since is not None and changed is not None and changed < modified_since
            if not old and len(pages) + len(sitemaps) < MOST_URLS:
                (pages if local == "url" else sitemaps).append(fields["loc"])
        text.clear()

    def refuse(*_: object) -> None:
        raise ValueError("a sitemap needs no entities")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = text.append, refuse
    with contextlib.suppress(expat.ExpatError, ValueError):
        parser.Parse(data, True)
    return Found(_unique(pages, url), _unique(sitemaps, url))


def _unique(urls: list[str], base: str) -> list[str]:
    found = (normalised(url, base) for url in urls)
    return list(dict.fromkeys(url for url in found if url))
