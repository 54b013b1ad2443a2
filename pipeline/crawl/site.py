"""`crawl.site`: a polite crawl of some sites into WARC files, read back as RECORD rows."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from cluster import storage
from cluster.errors import RecipeError
from pipeline.crawl.archive import records
from pipeline.crawl.capture import HTML_TYPES, add_capture
from pipeline.crawl.rows import Rows, timestamp
from pipeline.crawl.url import normalised, site_of
from pipeline.schema import RECORD, document_id
from pipeline.step import Source, Verdict, Work

if TYPE_CHECKING:
    from pipeline.run import StageRun

_SITES_PER_TASK = 32


def sites_per_task(sites: int, workers: int) -> int:
    """So few that every worker has a task, and no more than a task has threads for."""
    return min(_SITES_PER_TASK, max(1, -(-sites // max(1, workers))))


class Site(Source):
    """Crawls from seeds, breadth first, obeying robots.txt, and yields every URL that it tried as a row.

    Rows that are no documents are removed as `robots`, `private_address`, `timeout`, `unreachable`, `redirect`,
    `http_status`, `content_type`, `truncated`, `empty`, `revisit` (the body of an earlier
    page; the WARC file names it). Identities come from URL and content, so that a crawl of an
    unchanged site gives the same ones. The WARC files lie in the stage's folder; a crawl that was interrupted goes
    on behind its last committed file.
    """

    seeds: tuple[str, ...] = Field(
        min_length=1, description="URLs to start from; one named *sitemap*.xml is read as such"
    )
    source: str = Field("site", description="name of the corpus, for mixing")
    max_pages: int = Field(1000, ge=1, description="most requests per site; of all sites together unless same_host")
    max_depth: int = Field(16, ge=0, description="most links between a seed and a page")
    max_redirects: int = Field(5, ge=0, description="longest chain of redirects that is followed")
    sitemaps: bool = Field(True, description="also start from the pages in the sitemaps that robots.txt names")
    modified_since: datetime | None = Field(
        None, description="pages that a sitemap dates before this are not fetched (unless a link leads there)"
    )
    allow: tuple[str, ...] = Field((), description="regular expressions: only URLs that one is found in are followed")
    deny: tuple[str, ...] = Field((), description="regular expressions: URLs that one is found in are not followed")
    same_host: bool = Field(True, description="stay on the hosts of the seeds (with and without www.)")
    delay: float = Field(1.0, ge=0, description="seconds between two requests to one host; robots.txt may ask for more")
    max_delay: float = Field(60.0, gt=0, description="longest wait that robots.txt or Retry-After can impose")
    retries: int = Field(2, ge=0, description="new attempts after 429 or 503")
    timeout: float = Field(20.0, gt=0, description="seconds for one request in all")
    max_page_bytes: int = Field(8 << 20, gt=0, description="longer responses are cut off and removed as truncated")
    content_types: tuple[str, ...] = Field(HTML_TYPES, description="media types whose bodies are fetched and kept")
    user_agent: str = Field(
        "corpusmill/0.1",
        pattern=r"^[\x20-\x7e]+$",
        description="how the crawler names itself",
    )
    allow_private_hosts: tuple[str, ...] = Field(
        (), description="hosts (or host:port) that may have loopback or private addresses"
    )

    def check(self) -> None:
        for seed in self.seeds:
            if normalised(seed) is None:
                raise RecipeError(f"crawl.site: seed {seed!r} is not an http or https URL")
        if self.modified_since is not None and self.modified_since.tzinfo is None:
            raise RecipeError("crawl.site: modified_since needs a time zone, such as 2026-01-31T00:00:00Z")
        for pattern in (*self.allow, *self.deny):
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError(f"crawl.site: {pattern!r} is not a regular expression: {error}") from None

    def _groups(self) -> list[list[str]]:
        """Seeds that are crawled together, in the order of the recipe: those of one site."""
        groups: dict[str, list[str]] = {}
        for seed in dict.fromkeys(str(normalised(seed)) for seed in self.seeds):
            groups.setdefault(site_of(seed) if self.same_host else "", []).append(seed)
        return list(groups.values())

    def prepare(self, stage: StageRun) -> None:
        groups = self._groups()
        # fixed, because a resumed crawl may have other workers, but goes on with the same tasks
        each = stage.fix("sites_per_task", sites_per_task(len(groups), stage.workers))
        tasks = [{"groups": groups[i : i + each]} for i in range(0, len(groups), each)]
        files = [name for result in stage.map("crawl", tasks) for name in result["files"]]
        storage.write_bytes(storage.join(stage.folder, "crawl.json"), json.dumps(files).encode())

    def tasks(self, stage: StageRun) -> list[dict[str, Any]]:
        files = json.loads(storage.read_bytes(storage.join(stage.folder, "crawl.json")))
        return [{"path": path, "bytes": size} for path, size in files]

    def read(self, task: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, Verdict | None]]:
        rows, limit = Rows(RECORD, self.source), self.max_page_bytes
        with storage.open_read(task["path"]) as stream:
            for record in records(stream, max_bytes=2 * limit + (1 << 20), skip=("warcinfo", "request")):
                if record.kind == "metadata" and record.problem is None:
                    url = record.headers["warc-target-uri"]
                    date = timestamp(record.headers.get("warc-date"))
                    outcome = record.block.split(b"\r\n")[0].decode().removeprefix("outcome: ")
                    rows.add({"doc_id": document_id("", 0, url, b""), "url": url, "date": date}, reason=outcome)
                else:
                    add_capture(
                        rows,
                        "",
                        record,
                        content_types=self.content_types,
                        max_bytes=2 * limit + (1 << 20),
                        keep_truncated=False,
                    )
                yield from rows.full()
        yield from rows.rest()

    def crawl(self, task: dict[str, Any], work: Work) -> dict[str, Any]:
        """Crawl the sites of a task, each in a thread; [[path, bytes], …] of their WARC files in order."""
        from pipeline.crawl.walk import Walk

        stop = threading.Event()
        walks = [Walk(self, seeds, self._folder(work, seeds), work.attempt, stop) for seeds in task["groups"]]
        with ThreadPoolExecutor(len(walks)) as pool:
            running: set[Future[None]] = {pool.submit(walk.run) for walk in walks}
            told = 0
            try:
                while running:
                    done, running = wait(running, timeout=0.5)
                    for future in done:
                        future.result()
                    visited = sum(walk.visited for walk in walks)
                    work.progress(visited - told)
                    told = visited
            except BaseException:
                stop.set()
                raise
        return {"files": [file for walk in walks for file in walk.files]}

    def _folder(self, work: Work, seeds: list[str]) -> str:
        return storage.join(work.folder, "site-" + hashlib.sha256("\n".join(seeds).encode()).hexdigest()[:16])
