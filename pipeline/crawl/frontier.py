"""Which URLs are crawled, in which order: breadth first, each once, a pure function of what was found so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pipeline.crawl.url import normalised


class Visit(NamedTuple):
    """A URL to fetch; `depth` links and `hops` redirects away from a seed."""

    url: str
    depth: int
    hops: int


UNFETCHED = frozenset({"robots", "private_address"})
"""Outcomes that cost no request for the page, and so do not count as pages."""


class Frontier:
    """The queue and the set of seen URLs.

    Its state is a fold over the outcomes in order (`settle`), so that a crawl resumes by replaying what was
    committed: {"url", "depth", "hops", "outcome", "links": [absolute URLs], "location": redirect target or None,
    "sitemaps": [absolute URLs]}.
    """

    def __init__(
        self,
        seeds: Iterable[str],
        admits: Callable[[str], bool],
        *,
        max_pages: int,
        max_depth: int,
        max_redirects: int,
    ):
        self._admits, self._max_depth, self._max_redirects = admits, max_depth, max_redirects
        self._left = max_pages
        self._seen: set[str] = set()
        self._sitemaps: set[str] = set()
        self._queue: list[Visit] = []
        self._next = 0
        for seed in seeds:
            if is_sitemap_name(seed):
                self.add_sitemap(seed)
            self._add(seed, 0, 0)

    def add_sitemap(self, url: str) -> None:
        """Queue a sitemap; what it names are pages of depth 0, as seeds are."""
        if url not in self._seen:
            self._seen.add(url)
            self._sitemaps.add(url)
            self._queue.append(Visit(url, 0, 0))

    def is_sitemap(self, url: str) -> bool:
        return url in self._sitemaps

    def _add(self, url: str, depth: int, hops: int) -> None:
        if url not in self._seen and self._admits(url):
            self._seen.add(url)
            self._queue.append(Visit(url, depth, hops))

    def ahead(self, count: int) -> list[Visit]:
        """The next visits, at most `count` and no more than the limit on pages leaves."""
        return self._queue[self._next : self._next + min(count, self._left)]

    def settle(self, outcomes: Iterable[dict[str, Any]]) -> None:
        """Take the outcomes of the next visits, in their order, and queue what they lead to."""
        for outcome in outcomes:
            self._next += 1
            self._left -= outcome["outcome"] not in UNFETCHED
            is_map = outcome["url"] in self._sitemaps
            if outcome.get("location") and outcome["hops"] < self._max_redirects:
                if is_map and self._admits(outcome["location"]) and outcome["location"] not in self._seen:
                    self._sitemaps.add(outcome["location"])
                self._add(outcome["location"], outcome["depth"], outcome["hops"] + 1)
            for sitemap in outcome.get("sitemaps", ()):
                self.add_sitemap(sitemap)
            if is_map:
                for link in outcome.get("links", ()):
                    self._add(link, 0, 0)
                continue
            if outcome["depth"] < self._max_depth:
                for link in outcome.get("links", ()):
                    self._add(link, outcome["depth"] + 1, 0)
        if self._next > 10_000:
            del self._queue[: self._next]
            self._next = 0


def is_sitemap_name(url: str) -> bool:
    """Whether a seed is named as sitemaps are: `sitemap.xml`, `sitemap_index.xml.gz`, `post-sitemap2.txt`."""
    return bool(re.search(r"/[^/?]*sitemap[^/?]*\.(xml|txt)(\.gz)?$", url, re.I))


def links_in(html: bytes, url: str, encoding: str | None, *, most: int = 10_000) -> list[str]:
    """Normalised targets of the links of a page, in order, each once; none of a page that asks not to be followed."""
    from selectolax.lexbor import LexborHTMLParser

    from pipeline.extract.encoding import decode

    tree = LexborHTMLParser(decode(html, encoding)[0])
    for meta in tree.css("meta[name][content]"):
        if (meta.attributes.get("name") or "").lower() == "robots" and re.search(
            r"\b(nofollow|none)\b", (meta.attributes.get("content") or "").lower()
        ):
            return []
    first = tree.css_first("base[href]")
    base = normalised(first.attributes.get("href") or "", url) if first else None
    found: dict[str, None] = {}
    for node in tree.css("a[href], area[href]"):
        attributes = node.attributes
        if "nofollow" in (attributes.get("rel") or "").lower().split():
            continue
        target = normalised(attributes.get("href") or "", base or url)
        if target:
            found[target] = None
            if len(found) >= most:
                break
    return list(found)
