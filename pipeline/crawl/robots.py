"""robots.txt (RFC 9309) of the sites of one crawl, fetched once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipeline.crawl.url import normalised

if TYPE_CHECKING:
    from pipeline.crawl.fetch import Client

_MAX_BYTES = 500 << 10


class Robots:
    """Rules by origin (scheme, host, port); `known` is JSON and is kept with the crawl's state.

    A missing file (4xx) allows everything; a server that fails (5xx) or does not answer allows nothing.
    """

    def __init__(self, user_agent: str):
        self._agent = user_agent
        self.known: dict[str, dict[str, Any]] = {}
        self._parsed: dict[str, Any] = {}

    def has(self, url: str) -> bool:
        return origin_of(url) in self.known

    def fetch(self, url: str, client: Client) -> None:
        """Read the file of the URL's origin, redirects followed as for any crawled page."""
        origin = origin_of(url)
        target = f"{origin}/robots.txt"
        for _ in range(6):
            page = client.get(target)
            location = page.header("location")
            if not (300 <= page.status < 400 and location):
                break
            target = urljoin(target, location)
            if urlsplit(target).scheme not in ("http", "https"):
                page.failure = "unreachable"
                break
        if page.failure or page.status >= 500:
            self.known[origin] = {"allow": False}
        elif 200 <= page.status < 300:
            self.known[origin] = {"text": page.body[:_MAX_BYTES].decode("utf-8", "replace")}
        else:
            self.known[origin] = {"allow": True}

    def _rules(self, url: str) -> Any:
        from protego import Protego

        origin = origin_of(url)
        if origin not in self._parsed:
            entry = self.known[origin]
            text = entry.get("text", "" if entry.get("allow") else "User-agent: *\nDisallow: /")
            self._parsed[origin] = Protego.parse(text)
        return self._parsed[origin]

    def allows(self, url: str) -> bool:
        return bool(self._rules(url).can_fetch(url, self._agent))

    def sitemaps(self, origin: str) -> list[str]:
        """Normalised URLs of the sitemaps that an origin's file names, at most 100."""
        found = (normalised(url) for url in self._rules(origin + "/").sitemaps)
        return list(dict.fromkeys(url for url in found if url))[:100]

    def delay(self, url: str) -> float:
        """Seconds that the site asks for between two requests, 0 when it does not."""
        return float(self._rules(url).crawl_delay(self._agent) or 0)


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
