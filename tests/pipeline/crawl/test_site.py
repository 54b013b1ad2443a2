import gzip
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.errors import RecipeError
from pipeline.crawl.fetch import is_public
from pipeline.crawl.site import Site, sites_per_task
from pipeline.crawl.url import normalised
from pipeline.crawl.warc import Warc
from pipeline.manifest import once
from pipeline.step import Work

PAGES = 12


class Traps(BaseHTTPRequestHandler):
    """A site with what a crawler meets: loops, denial, private redirects, endless and huge and slow pages."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        with server.lock:
            server.log.append((time.monotonic(), self.path))
            count = sum(path == self.path for _, path in server.log)
        path = self.path.partition("?")[0]
        if path == "/robots.txt":
            self.send(b"User-agent: *\nDisallow: /secret\n", "text/plain")
        elif path == "/":
            links = "secret/a calendar/1 redirect loop/a private metadata missing huge slow busy file.png frame%20d dup"
            anchors = "".join(f'<a href="/{link}">{link}</a>' for link in links.split())
            anchors += '<a href="/page/0">p</a> <a href="page/0#x">same</a> <a href="HTTP://LOCALHOST/other">far</a>'
            anchors += (
                '<a href="mailto:x@y">m</a> <a href="javascript:void(0)">j</a> <a rel="nofollow" href="/no">n</a>'
            )
            self.send(f"<html><body>{anchors}</body></html>".encode())
        elif path.startswith("/page/"):
            i = int(path[6:])
            body = f"<html><p>Page {i} with some words.</p><a href='/page/{i + 1}'>n</a></html>".encode()
            self.send(gzip.compress(body) if i % 2 else body, encoding="gzip" if i % 2 else None)
        elif path.startswith("/calendar/"):
            day = int(path[10:])
            self.send(f"<a href='/calendar/{day + 1}'>next</a><a href='?d={day}'>d</a>".encode())
        elif path == "/redirect":
            self.redirect("/page/1")
        elif path == "/loop/a":
            self.redirect("/loop/b")
        elif path == "/loop/b":
            self.redirect("/loop/a")
        elif path == "/private":
            self.redirect(f"http://127.0.0.2:{server.server_port}/stolen")
        elif path == "/metadata":
            self.redirect("http://169.254.169.254/latest/")
        elif path == "/busy" and count == 1:
            self.send_response(429)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/busy":
            self.send(b"<p>at last</p>")
        elif path == "/huge":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.close_connection = True
            for _ in range(4000):
                self.wfile.write(b"x" * 65536)
        elif path == "/slow":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.close_connection = True
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif path == "/file.png":
            self.send(b"\x89PNG", "image/png")
        else:
            self.send(b"<p>no such page</p>", status=404)

    def send(self, body, kind="text/html; charset=utf-8", status=200, encoding=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # the crawler hangs up on huge and slow pages


@pytest.fixture
def server():
    httpd = QuietServer(("127.0.0.1", 0), Traps)
    httpd.log, httpd.lock = [], threading.Lock()
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


class Stage:
    """What `prepare` and `tasks` need of a stage, the work done here."""

    def __init__(self, step, folder, attempt="a0", workers=1):
        self.step, self.folder, self.attempt, self.workers = step, str(folder), attempt, workers

    def fix(self, name, value):
        return once(f"{self.folder}/{name}.fixed.json", value)

    def map(self, phase, tasks):
        assert len(tasks) >= min(self.workers, len(self.step.seeds))  # no worker is idle while sites wait
        work = Work(f"{self.folder}/{phase}", self.attempt, 1 << 28, 0, 1000)
        return [getattr(self.step, phase)(task, work) for task in tasks]


def site_for(port, **fields):
    fields = {"delay": 0.0, "max_depth": 3, "timeout": 1.5, "max_page_bytes": 1 << 20} | fields
    return Site(seeds=(f"http://127.0.0.1:{port}/",), allow_private_hosts=("127.0.0.1",), **fields)


def crawl(site, folder, attempt="a0", workers=1):
    stage = Stage(site, folder, attempt, workers)
    site.check()
    site.prepare(stage)
    rows = []
    for task in site.tasks(stage):
        for batch, verdict in site.read(task):
            for i, row in enumerate(batch.to_pylist()):
                rows.append(row | {"reason": None if verdict is None else verdict.reason[i]})
    return rows


def test_a_site_full_of_traps_is_crawled_politely_and_ends(server, tmp_path):
    rows = crawl(site_for(server.server_port), tmp_path)
    found = {row["url"].partition(str(server.server_port))[2]: row["reason"] for row in rows}
    assert len(found) == len(rows)
    assert found["/"] is None
    assert found["/secret/a"] == "robots"
    assert found["/missing"] == "http_status"
    assert found["/redirect"] == found["/loop/a"] == found["/loop/b"] == "redirect"
    assert found["/private"] == found["/metadata"] == "redirect"
    assert found["/huge"] == found["/slow"] == "truncated"
    assert found["/busy"] is None
    assert found["/file.png"] == "content_type"
    assert found["/page/1"] is None
    assert "/calendar/3" in found
    assert "/calendar/5" not in found  # max_depth
    paths = Counter(path for _, path in server.log)
    assert paths.pop("/busy") == 2  # 429, then the page
    assert set(paths.values()) == {1}
    assert not [path for path in paths if "secret" in path or path in ("/stolen", "/no")]
    times = {path: at for at, path in server.log}
    assert times["/busy"] - next(at for at, path in server.log if path == "/busy") >= 0.9
    assert next(r["payload"] for r in rows if r["url"].endswith("/page/1")).startswith(b"<html><p>Page 1 ")


def test_private_addresses_are_refused_unless_the_recipe_names_the_host(server, tmp_path):
    port = server.server_port
    site = Site(
        seeds=(f"http://127.0.0.1:{port}/private",),
        allow_private_hosts=("127.0.0.1",),
        same_host=False,
        delay=0,
        timeout=2,
    )
    rows = {row["url"]: row["reason"] for row in crawl(site, tmp_path / "a")}
    # robots.txt of the refused host cannot be read either, and what cannot be read allows nothing
    assert rows[f"http://127.0.0.2:{port}/stolen"] in ("robots", "private_address")
    closed = Site(seeds=(f"http://127.0.0.1:{port}/", f"http://localhost:{port}/"), delay=0, timeout=2)
    assert {row["reason"] for row in crawl(closed, tmp_path / "b")} <= {"robots", "private_address"}
    assert {path for _, path in server.log} == {"/robots.txt", "/private"}


def test_a_crawl_repeated_gives_the_same_rows_in_the_same_order(server, tmp_path):
    def rows(folder):
        found = crawl(site_for(server.server_port, deny=("busy", "slow", "huge")), folder)
        return [(row["doc_id"], row["url"], row["reason"], row["payload"]) for row in found]

    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert first == second
    assert len(first) > 15


def test_sites_are_spread_over_the_workers_and_their_rows_do_not_tell(server, tmp_path):
    port = server.server_port
    seeds = tuple(f"http://127.0.0.{host}:{port}/page/{PAGES - 1}" for host in range(1, 6))
    hosts = tuple(f"127.0.0.{host}" for host in range(1, 6))
    site = Site(seeds=seeds, allow_private_hosts=hosts, delay=0, timeout=2, max_depth=1)

    def rows(workers):
        found = crawl(site, tmp_path / f"{workers}", workers=workers)
        return [(row["doc_id"], row["url"], row["reason"], row["payload"]) for row in found]

    alone = rows(1)
    assert len({url.split(":")[1] for _, url, _, _ in alone}) == 5
    assert rows(2) == rows(5) == rows(40) == alone
    # a resumed crawl with other workers goes on with the tasks that it began with
    assert [rows(2) for _ in range(2)] == [alone, alone]


@pytest.mark.parametrize(
    ("sites", "workers", "each"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (100, 2, 32), (1, 0, 1), (64, 2, 32)]
)
def test_no_worker_is_without_a_site_while_another_has_two(sites, workers, each):
    assert sites_per_task(sites, workers) == each


def test_the_delay_between_requests_is_kept(server, tmp_path):
    crawl(site_for(server.server_port, delay=0.1, max_pages=5, deny=("busy", "slow", "huge")), tmp_path)
    times = [at for at, _ in server.log]
    assert len(times) == 6
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.09


def test_the_limit_on_pages_is_exact(server, tmp_path):
    rows = crawl(site_for(server.server_port, max_pages=4, deny=("busy", "slow", "huge")), tmp_path)
    assert len([row for row in rows if row["reason"] != "robots"]) == 4


def test_a_second_attempt_fetches_nothing_that_was_committed(server, tmp_path):
    site = site_for(server.server_port, deny=("busy", "slow", "huge"))
    first = crawl(site, tmp_path, "a0")
    requests = len(server.log)
    assert crawl(site, tmp_path, "a1") == first
    assert len(server.log) == requests


CRAWL = """
import sys
from pipeline.crawl.site import Site, sites_per_task
from pipeline.manifest import once
from pipeline.step import Work
site = Site(seeds=(sys.argv[1],), allow_private_hosts=("127.0.0.1",), delay=0.02, max_depth=100, allow=("page", "/$"))
site.crawl({"groups": [[sys.argv[1]]]}, Work(sys.argv[2], "killed", 1 << 28, 0, 1000))
"""


def test_a_killed_crawl_goes_on_where_it_was(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/page/0"
    process = subprocess.Popen([sys.executable, "-c", CRAWL, url, str(tmp_path / "crawl")], cwd=os.getcwd())
    deadline = time.monotonic() + 30
    while len(server.log) < 45 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    before = [path for _, path in server.log]
    site = Site(
        seeds=(url,), allow_private_hosts=("127.0.0.1",), delay=0.02, max_depth=100, max_pages=60, allow=("page", "/$")
    )
    rows = crawl(site, tmp_path, "again")
    again = [path for _, path in server.log][len(before) :]
    assert [row["url"].rpartition("/")[2] for row in rows] == [str(i) for i in range(60)]
    assert {row["reason"] for row in rows} == {None}
    assert len(before) >= 45
    # at most the one request that was under way is made a second time
    assert len(set(before) & set(again)) <= 1
    assert "/robots.txt" not in again


SITEMAP = '<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{}</urlset>'


class Mapped(BaseHTTPRequestHandler):
    """A site whose pages are found by its sitemaps alone; two of them have the same body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        port = self.server.server_port
        self.server.log.append(self.path)
        bodies = {
            "/robots.txt": f"User-agent: *\nDisallow: /no\nSitemap: http://127.0.0.1:{port}/maps/index.xml\n".encode(),
            "/maps/index.xml": (
                "<sitemapindex><sitemap><loc>/maps/a.xml.gz</loc></sitemap><sitemap><loc>b.txt</loc></sitemap>"
                f"<sitemap><loc>http://localhost:{port}/elsewhere.xml</loc></sitemap></sitemapindex>"
            ).encode(),
            "/maps/a.xml.gz": gzip.compress(
                SITEMAP.format(
                    "<url><loc>/new</loc><lastmod>2026-05-01</lastmod></url>"
                    "<url><loc>/old</loc><lastmod>2001-05-01</lastmod></url><url><loc>/no/1</loc></url>"
                    "<url><loc>/undated</loc></url>"
                ).encode()
            ),
            "/maps/b.txt": b"/listed\nhttp://other.example/\n",
            "/": b"<p>The front page.</p>",
            "/new": b"<p>Something new.</p>",
            "/undated": b"<p>The same words.</p>",
            "/listed": b"<p>The same words.</p>",
        }
        body = bodies.get(self.path)
        kind = "text/plain" if self.path.endswith("txt") else "application/xml" if "maps" in self.path else "text/html"
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def mapped():
    httpd = QuietServer(("127.0.0.1", 0), Mapped)
    httpd.log = []
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_sitemaps_lead_to_pages_and_lastmod_and_robots_hold_some_back(mapped, tmp_path):
    port = mapped.server_port
    rows = crawl(site_for(port, modified_since="2020-01-01T00:00:00Z"), tmp_path)
    found = {row["url"].partition(str(port))[2]: row["reason"] for row in rows}
    assert found.pop("/maps/index.xml") == found.pop("/maps/a.xml.gz") == found.pop("/maps/b.txt") == "content_type"
    assert found == {"/": None, "/new": None, "/no/1": "robots", "/undated": None, "/listed": "revisit"}
    assert max(Counter(mapped.log).values()) == 1
    assert not {"/old", "/no/1", "/elsewhere.xml"} & set(mapped.log)


def test_a_sitemap_can_be_the_seed(mapped, tmp_path):
    port = mapped.server_port
    site = Site(
        seeds=(f"http://127.0.0.1:{port}/maps/sitemap.xml",),
        allow_private_hosts=("127.0.0.1",),
        delay=0,
        sitemaps=False,
    )
    assert [row["reason"] for row in crawl(site, tmp_path)] == ["http_status"]
    assert mapped.log == ["/robots.txt", "/maps/sitemap.xml"]


def test_a_body_that_was_there_before_is_written_as_a_revisit_that_names_it(mapped, tmp_path):
    crawl(site_for(mapped.server_port), tmp_path)
    archives = sorted(tmp_path.rglob("*.warc.gz"))
    text = b"".join(gzip.decompress(file.read_bytes()) for file in archives)
    assert text.count(b"WARC-Type: revisit\r\n") == 1
    head = text.partition(b"WARC-Type: revisit\r\n")[2].partition(b"\r\n\r\n")[0]
    assert f"WARC-Refers-To-Target-URI: http://127.0.0.1:{mapped.server_port}/undated".encode() in head
    assert b"/listed" in head
    assert not [file for file in tmp_path.rglob("answers/*") if file.is_file()]
    # read as an archive, the revisit has the payload of what it refers to
    rows = {}
    for batch, verdict in (
        item
        for task in Warc(path=f"{tmp_path}/**/*.warc.gz", revisits="resolve").tasks(None)
        for item in Warc(path=f"{tmp_path}/**/*.warc.gz", revisits="resolve").read(task)
    ):
        for i, row in enumerate(batch.to_pylist()):
            rows[row["url"].partition(str(mapped.server_port))[2]] = (
                row["payload"],
                None if verdict is None else verdict.reason[i],
            )
    assert rows["/listed"] == (b"<p>The same words.</p>", None)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(RecipeError, match="not an http or https URL"):
        Site(seeds=("ftp://a/",)).check()
    with pytest.raises(RecipeError, match="not a regular expression"):
        Site(seeds=("http://a/",), allow=("(",)).check()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.COM:80/a/../b/./c?x=1#frag", "http://example.com/b/c?x=1"),
        ("https://example.com:443", "https://example.com/"),
        ("http://bücher.example/ü?q=ü", "http://xn--bcher-kva.example/%C3%BC?q=%C3%BC"),
        ("http://a/%7euser/%2f%zz", "http://a/~user/%2F%25zz"),
        ("http://a/b c", "http://a/b%20c"),
        ("http://user:pw@a/", None),
        ("javascript:alert(1)", None),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("http://a:99999/", None),
        ("http:///nohost", None),
    ],
)
def test_urls_get_one_form(url, expected):
    assert normalised(url) == expected
    if expected:
        assert normalised(expected) == expected


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "::1", "fe80::1%eth0"])
@pytest.mark.parametrize("wrap", ["{}", "::ffff:{}", "64:ff9b::{}"])
def test_private_addresses_are_known_in_every_spelling(address, wrap):
    if ":" in address and wrap != "{}":
        return
    assert not is_public(wrap.format(address))


def test_public_addresses_are_public():
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")
    assert not is_public("100.64.0.1")
    assert not is_public("0.0.0.0")
    assert not is_public("224.0.0.1")
