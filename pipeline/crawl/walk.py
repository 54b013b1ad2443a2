"""The crawl of one site (or of several that link to each other), committed segment by segment.

A segment is a WARC file and a JSON file that names it with the outcome of every visit in it. The JSON file is
created only if it is absent: that is the commit. What a crawl knows (queue, seen URLs, robots.txt) is replayed
from the committed segments. Each answer is also written down on its own until its segment is committed, so that a
new attempt fetches nothing again that had come.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import storage
from pipeline.crawl import warc_writer
from pipeline.crawl.fetch import Client, Fetched
from pipeline.crawl.frontier import UNFETCHED, Frontier, Visit, links_in
from pipeline.crawl.message import Response, decoded_body
from pipeline.crawl.robots import Robots, origin_of
from pipeline.crawl.sitemap import Found, read_sitemap
from pipeline.crawl.url import normalised, site_of
from pipeline.extract.encoding import charset_of

if TYPE_CHECKING:
    from pipeline.crawl.site import Site

_SEGMENT_SECONDS = 5.0
_SEGMENT_VISITS = 32
_MOST_HOSTS = 32


class Stopped(Exception):
    """The crawl was told to stop; what is committed stays."""


class Walk:
    """One crawl; `files` are [path, bytes] of its WARC files, `visited` counts what was tried."""

    def __init__(self, site: Site, seeds: list[str], folder: str, attempt: str, stop: threading.Event):
        self._site, self._folder, self._attempt, self._stop = site, folder, attempt, stop
        self._robots = Robots(site.user_agent)
        self._frontier = Frontier(
            seeds,
            _admission(site, seeds),
            max_pages=site.max_pages,
            max_depth=site.max_depth,
            max_redirects=site.max_redirects,
        )
        self._same_site = _same_site(site, seeds)
        self._written: dict[str, list[str]] = {}
        self._clients: dict[str, Client] = {}
        self._ready_at: dict[str, float] = {}
        self.files: list[list[Any]] = []
        self.visited = 0

    def run(self) -> None:
        """Crawl until nothing is left to visit. Raises Stopped."""
        try:
            while self._replay() or self._segment():
                pass
        finally:
            for client in self._clients.values():
                client.close()

    def _replay(self) -> bool:
        """Take over the next committed segment, if there is one."""
        path = storage.join(self._folder, f"{len(self.files):06d}.json")
        if not storage.exists(path):
            return False
        segment = json.loads(storage.read_bytes(path))
        self.files.append(segment["file"])
        self._robots.known.update(segment["robots"])
        for digest, first in segment["written"].items():
            self._written.setdefault(digest, first)
        if self._site.sitemaps:
            for origin in segment["robots"]:
                for sitemap in self._robots.sitemaps(origin):
                    if self._same_site(sitemap):
                        self._frontier.add_sitemap(sitemap)
        self._frontier.settle(segment["outcomes"])
        self.visited += len(segment["outcomes"])
        for outcome in segment["outcomes"]:
            host = urlsplit(outcome["url"]).netloc
            self._ready_at.setdefault(host, time.monotonic() + self._site.delay)
        return True

    def _segment(self) -> bool:
        """Visit the next URLs and commit them; False when there are none."""
        visits = self._frontier.ahead(_SEGMENT_VISITS * _MOST_HOSTS)
        hosts = list(dict.fromkeys(urlsplit(visit.url).netloc for visit in visits))[:_MOST_HOSTS]
        per_host = min(_SEGMENT_VISITS, max(1, math.ceil(_SEGMENT_SECONDS / max(self._site.delay, 0.01))))
        visits = visits[: per_host * len(hosts)]
        if not visits:
            return False
        known = set(self._robots.known)
        pages: dict[str, tuple[Fetched, datetime, Found]] = {}

        def visit_host(host: str) -> None:
            for visit in visits:
                if urlsplit(visit.url).netloc == host:
                    page, date = self._kept(visit.url) or self._fetched(visit, host)
                    pages[visit.url] = page, date, self._links(page)
                    self.visited += 1

        here = list(dict.fromkeys(urlsplit(visit.url).netloc for visit in visits))
        if len(here) == 1:
            visit_host(here[0])
        else:
            with ThreadPoolExecutor(min(len(here), _MOST_HOSTS)) as pool:
                list(pool.map(visit_host, here))
        outcomes, parts = [], [warc_writer.warcinfo(pages[visits[0].url][1], {"software": self._site.user_agent})]
        written: dict[str, list[str]] = {}
        for visit in visits:
            page, date, links = pages[visit.url]
            parts.append(self._record(page, date, written))
            outcomes.append(_outcome(visit, page, links))
        name = storage.join(self._folder, f"{len(self.files):06d}-{self._attempt}.warc.gz")
        data = b"".join(parts)
        storage.write_bytes(name, data)
        robots = {origin: rules for origin, rules in self._robots.known.items() if origin not in known}
        segment = {"file": [name, len(data)], "outcomes": outcomes, "robots": robots, "written": written}
        self.visited -= len(visits)
        committed = storage.join(self._folder, f"{len(self.files):06d}.json")
        if not storage.put_if_absent(committed, json.dumps(segment).encode()):
            storage.delete(name)  # another attempt of this crawl was first: go on from what it has
        for visit in visits:
            storage.delete(self._place(visit.url))
        return self._replay()

    # each answer is written down at once, so that a killed crawl asks for nothing that it had before its segment's end

    def _place(self, url: str) -> str:
        return storage.join(self._folder, "answers", hashlib.sha256(url.encode()).hexdigest()[:32])

    def _fetched(self, visit: Visit, host: str) -> tuple[Fetched, datetime]:
        page, date = self._visit(visit, host), datetime.now(UTC)
        if page.failure not in UNFETCHED:
            origin = origin_of(visit.url)
            head = {
                "page": {name: value for name, value in vars(page).items() if name != "body"},
                "date": date.isoformat(),
                "robots": [origin, self._robots.known[origin]],
            }
            storage.write_bytes(self._place(visit.url), json.dumps(head).encode() + b"\n" + page.body)
        return page, date

    def _kept(self, url: str) -> tuple[Fetched, datetime] | None:
        """What an attempt that was killed had fetched, and not yet committed."""
        if not storage.exists(self._place(url)):
            return None
        head, _, body = storage.read_bytes(self._place(url)).partition(b"\n")
        known = json.loads(head)
        origin, rules = known["robots"]
        self._robots.known.setdefault(origin, rules)
        headers = [(name, value) for name, value in known["page"].pop("headers")]
        return Fetched(body=body, headers=headers, **known["page"]), datetime.fromisoformat(known["date"])

    def _record(self, page: Fetched, date: datetime, written: dict[str, list[str]]) -> bytes:
        """The record of a visit: a revisit where the body is that of an earlier response of this crawl."""
        if page.failure:
            return warc_writer.outcome(page, date)
        if page.status != 200 or page.truncated or not page.body:
            return warc_writer.response(page, date)
        digest = warc_writer.payload_digest(page)
        first = self._written.get(digest) or written.get(digest)
        if first is not None:
            return warc_writer.revisit(page, date, *first)
        written[digest] = [page.url, warc_writer.stamp(date)]
        return warc_writer.response(page, date)

    def _visit(self, visit: Visit, host: str) -> Fetched:
        site = self._site
        client = self._clients.get(host)
        if client is None:
            client = self._clients[host] = Client(
                user_agent=site.user_agent,
                private_hosts=frozenset(site.allow_private_hosts),
                max_bytes=site.max_page_bytes,
                timeout=site.timeout,
            )
        if not self._robots.has(visit.url):
            self._wait(host, 0)
            self._robots.fetch(visit.url, client)
            self._ready_at[host] = time.monotonic() + site.delay
        if not self._robots.allows(visit.url):
            return Fetched(visit.url, failure="robots", detail="robots.txt does not allow it")
        pause = max(site.delay, min(self._robots.delay(visit.url), site.max_delay))
        for attempt in range(site.retries + 1):
            self._wait(host, 0)
            page = client.get(visit.url, None if self._frontier.is_sitemap(visit.url) else site.content_types)
            self._ready_at[host] = time.monotonic() + pause
            if page.status not in (429, 503) or attempt == site.retries:
                break
            after = _seconds(page.header("retry-after"))
            self._wait(host, min(site.max_delay, after if after is not None else pause * 2 ** (attempt + 1)))
        return page

    def _wait(self, host: str, at_least: float) -> None:
        until = max(self._ready_at.get(host, 0.0), time.monotonic() + at_least)
        if self._stop.wait(max(0.0, until - time.monotonic())):
            raise Stopped

    def _links(self, page: Fetched) -> Found:
        if page.failure or page.status != 200 or page.truncated:
            return Found([], [])
        content_type = page.header("content-type")
        media = content_type.partition(";")[0].strip().lower()
        is_map = self._frontier.is_sitemap(page.url)
        if media and "html" not in media and not is_map:
            return Found([], [])
        headers = {name.lower(): value for name, value in page.headers if name.lower() == "content-encoding"}
        body, _ = decoded_body(Response(200, headers, page.body), 2 * self._site.max_page_bytes)
        if is_map:
            found = read_sitemap(bytes(body), page.url, self._site.modified_since)
            return Found(found.pages, [url for url in found.sitemaps if self._same_site(url)])
        return Found(links_in(bytes(body), page.url, charset_of(content_type)), [])


def _same_site(site: Site, seeds: list[str]) -> Callable[[str], bool]:
    sites = {site_of(seed) for seed in seeds}
    return lambda url: not site.same_host or site_of(url) in sites


def _admission(site: Site, seeds: list[str]) -> Callable[[str], bool]:
    allow = [re.compile(pattern) for pattern in site.allow]
    deny = [re.compile(pattern) for pattern in site.deny]
    same_site, starts = _same_site(site, seeds), set(seeds)

    def admits(url: str) -> bool:
        if url in starts:
            return True
        if not same_site(url):
            return False
        return (not allow or any(p.search(url) for p in allow)) and not any(p.search(url) for p in deny)

    return admits


def _outcome(visit: Visit, page: Fetched, found: Found) -> dict[str, Any]:
    location = page.header("location") if 300 <= page.status < 400 else ""
    return {
        "url": visit.url,
        "depth": visit.depth,
        "hops": visit.hops,
        "outcome": page.failure or str(page.status),
        "location": normalised(location, visit.url) if location else None,
        "links": found.pages,
        "sitemaps": found.sitemaps,
    }


def _seconds(retry_after: str) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
