"""Archives over real loopback HTTP: path lists, ranges, busy servers, broken connections, files that change."""

from __future__ import annotations

import gzip
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cluster.errors import DataError
from pipeline.crawl import remote
from pipeline.crawl.remote import Ranges
from pipeline.crawl.warc import Warc


class Archive(BaseHTTPRequestHandler):
    """Serves `server.files` with ranges; `server.mood` says how it misbehaves."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        data, mood = server.files.get(self.path), server.mood
        if data is None:
            return self.answer(404, b"", {})
        if mood == "busy" and len(server.asked) % 2:
            return self.answer(503, b"", {"Retry-After": "0"})
        etag = f'"{len(server.asked)}"' if mood == "changing" else '"1"'
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if mood == "no ranges" or asked is None:
            return self.answer(200, data, {"ETag": etag})
        start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if start >= len(data):
            return self.answer(416, b"", {})
        part = data[start : end + 1]
        head = {"ETag": etag, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
        return self.answer(206, part, head, cut=len(part) // 2 + 1 if mood == "breaking" else None)

    def answer(self, status, body, head, cut=None):
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None and cut < len(body):
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    httpd.daemon_threads, httpd.files, httpd.asked, httpd.mood = True, {}, [], ""
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def record(i):
    body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>page {i}</p>".encode()
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/{i}\r\nContent-Length: {len(body)}\r\n\r\n"
    return gzip.compress(head.encode() + body + b"\r\n\r\n")


@pytest.mark.parametrize("mood", ["", "busy", "no ranges", "breaking"])
def test_a_path_list_gives_the_records_of_its_files_whatever_the_servers_mood(server, mood):
    names = [f"crawl-data/CC-MAIN-2026-01/segments/{i}/warc/a.warc.gz" for i in range(3)]
    server.files = {f"/{name}": b"".join(record(10 * i + j) for j in range(5)) for i, name in enumerate(names)}
    server.files["/warc.paths.gz"] = gzip.compress("\n".join(names).encode())
    server.mood = mood
    place = f"http://127.0.0.1:{server.server_port}/"
    source = Warc(path=f"{place}warc.paths.gz", prefix=place, max_files=2)
    source.check()
    rows = [row for task in source.tasks(None) for batch, _ in source.read(task) for row in batch.to_pylist()]
    assert [row["url"] for row in rows] == [f"http://a/{i}" for i in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14)]
    assert not [path for path, _ in server.asked if "segments/2" in path]


def test_a_list_on_disk_names_files_on_s3_or_anywhere(tmp_path):
    (tmp_path / "warc.paths").write_text("crawl-data/a.warc.gz\n\nhttps://b.example/c.warc.gz\n")
    found = remote.find(str(tmp_path / "warc.paths"), "s3://commoncrawl/")
    assert [entry.path for _, entry in found] == [
        "s3://commoncrawl/crawl-data/a.warc.gz",
        "https://b.example/c.warc.gz",
    ]
    (tmp_path / "warc.paths").write_text("a.warc.gz\n")
    assert remote.find(str(tmp_path / "warc.paths"))[0][1].path == "https://data.commoncrawl.org/a.warc.gz"


@pytest.mark.parametrize("mood", ["", "busy", "no ranges", "breaking"])
def test_a_large_file_comes_in_ranges_and_can_be_read_from_anywhere(server, mood):
    data = np.random.default_rng(0).bytes((20 << 20) + 17)
    server.files["/big"], server.mood = data, mood
    stream = Ranges(f"http://127.0.0.1:{server.server_port}/big", pause=0.01)
    assert stream.read(5) == data[:5]
    stream.seek(9 << 20)
    assert stream.read(1 << 20) == data[9 << 20 : 10 << 20]
    stream.seek(0)
    assert stream.read() == data
    assert stream.read(1) == b""
    stream.seek(-3, 2)
    assert stream.read() == data[-3:]


def test_what_cannot_be_had_is_named(server):
    place = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(DataError, match=r"/none: the server answers 404"):
        Ranges(f"{place}/none").read()
    server.files["/changing"], server.mood = bytes(20 << 20), "changing"
    with pytest.raises(DataError, match="changed while it was read"):
        Ranges(f"{place}/changing").read()
    server.mood = "busy"
    server.asked.clear()
    with pytest.raises(DataError, match=r"cannot be read at byte 0 after 1 tries: the server answers 503"):
        Ranges(f"{place}/changing", tries=1).read()
