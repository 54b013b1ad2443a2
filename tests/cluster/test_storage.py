"""Local paths and s3:// behave alike: the same laws for both."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from cluster import storage
from cluster.errors import RecipeError
from pipeline import shards


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_what_is_written_is_read(folder: str) -> None:
    storage.write_bytes(f"{folder}/a/b.bin", b"one")
    storage.write_bytes(f"{folder}/a/b.bin", b"two")
    assert storage.read_bytes(f"{folder}/a/b.bin") == b"two"
    assert storage.exists(f"{folder}/a/b.bin")
    assert storage.entry(f"{folder}/a/b.bin").size == 3


def test_an_absent_file_is_file_not_found(folder: str) -> None:
    assert not storage.exists(f"{folder}/none")
    for call in (storage.read_bytes, storage.entry):
        with pytest.raises(FileNotFoundError):
            call(f"{folder}/none")
    storage.delete(f"{folder}/none")


def test_only_the_first_commit_counts(folder: str) -> None:
    path, wins = f"{folder}/done/1.json", []
    threads = [
        threading.Thread(target=lambda i=i: wins.append(i) if storage.put_if_absent(path, str(i).encode()) else None)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(path) == str(wins[0]).encode()


def test_names_found_do_not_depend_on_where_the_set_lies(folder: str) -> None:
    for name in ("x/b.warc.gz", "x/a.warc.gz", "x/y/c.warc.gz", "x/note.txt"):
        storage.write_bytes(f"{folder}/{name}", name.encode())
    assert [n for n, _ in storage.find(f"{folder}/x/*.warc.gz")] == ["a.warc.gz", "b.warc.gz"]
    assert [n for n, _ in storage.find(f"{folder}/x/**/*.gz")] == ["a.warc.gz", "b.warc.gz", "y/c.warc.gz"]
    assert [n for n, _ in storage.find(f"{folder}/x/[ab].warc.gz")] == ["a.warc.gz", "b.warc.gz"]
    assert [n for n, _ in storage.find(f"{folder}/x/a.warc.gz")] == ["a.warc.gz"]
    assert [n for n, _ in storage.find(f"{folder}/x")] == ["a.warc.gz", "b.warc.gz", "note.txt", "y/c.warc.gz"]
    assert storage.find(f"{folder}/nothing*") == []


def test_a_copy_has_the_same_bytes_and_survives_the_original(folder: str) -> None:
    storage.write_bytes(f"{folder}/from", b"x" * 100_000)
    storage.copy(f"{folder}/from", f"{folder}/deep/to")
    storage.delete(f"{folder}/from")
    assert storage.read_bytes(f"{folder}/deep/to") == b"x" * 100_000


def test_parquet_shards_round_trip(folder: str) -> None:
    batch = pa.RecordBatch.from_pydict(
        {"doc_id": [b"%016d" % i for i in range(2500)], "text": ["é" * i for i in range(2500)]}
    )
    writer = shards.ShardWriter(f"{folder}/part.parquet")
    writer.write(batch)
    path = writer.close()
    read = list(shards.read({"file": path, "rows": 2500}, batch_documents=1000))
    assert [b.num_rows for b in read] == [1000, 1000, 500]
    assert pa.Table.from_batches(read).equals(pa.Table.from_batches([batch]))


def test_braces_choose_among_names(folder: str) -> None:
    for name in ("web", "code", "mix"):
        storage.write_bytes(storage.join(folder, "runs", name, "documents", "part-0.parquet"), b"x")
    pattern = storage.join(folder, "runs", "{web,co*}", "documents", "*.parquet")
    assert [name for name, _ in storage.find(pattern)] == [
        "code/documents/part-0.parquet",
        "web/documents/part-0.parquet",
    ]
    mine = storage.join(folder, "runs", "mix", "documents", "part-0.parquet")
    assert not storage.takes_in(pattern, mine)
    everything = (storage.join(folder, "runs", "*", "documents", "*.parquet"), storage.join(folder, "runs"), mine)
    assert all(storage.takes_in(wide, mine) for wide in everything)
    assert not storage.takes_in(storage.join(folder, "run"), mine)


def test_names_with_the_characters_of_a_glob_are_found(folder: str) -> None:
    for name in ("x/[1] a.txt", "x/b&&c[.txt", "x/d #.txt"):
        storage.write_bytes(f"{folder}/{name}", b"x")
    assert [n for n, _ in storage.find(f"{folder}/x/[1] a.txt")] == ["[1] a.txt"]
    assert [n for n, _ in storage.find(f"{folder}/x/[[&]*.txt")] == ["[1] a.txt"]
    assert len(storage.find(f"{folder}/**.txt")) == 3
    with pytest.raises(RecipeError, match="not a glob: bad character range"):
        storage.find(f"{folder}/[z-a]")


def test_a_writable_folder_is_proved_by_writing(folder: str) -> None:
    storage.check_writable(f"{folder}/new")
    assert list(storage.list_files(f"{folder}/new")) == []


def test_a_dead_link_and_a_pipe_are_no_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "dead.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "live.txt").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [name for name, _ in storage.find(str(tmp_path))] == ["a.txt", "live.txt"]


class Refuses(http.server.BaseHTTPRequestHandler):
    """An S3 server that takes note of what is sent to it, and wants none of it."""

    sent: ClassVar[list[dict[str, str]]] = []

    def refuse(self) -> None:
        Refuses.sent.append({name.lower(): value.lower() for name, value in self.headers.items()})
        body = b"<Error><Code>AccessDenied</Code></Error>"
        if self.command == "POST":
            body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200 if self.command == "POST" else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = refuse

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[dict[str, str]]:
    """The environment of a process whose S3 is a server that refuses."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Refuses.sent.clear()
    yield os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
    }  # fmt: skip
    server.shutdown()


def in_a_process(code: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", f"from cluster import storage\n{code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr


def test_what_is_sent_has_its_length_and_no_trailer(refusing: dict[str, str]) -> None:
    # Ceph's gateway answers 411 to uploads in chunks with a checksum behind them
    in_a_process("f = storage.open_write('s3://b/k')\nf.write(b'x' * 100)\nf.close()", refusing)
    parts = [headers for headers in Refuses.sent if headers.get("content-length", "0") == "100"]
    assert parts, Refuses.sent
    assert not any("x-amz-trailer" in headers or "chunked" in str(headers) for headers in Refuses.sent)


def test_a_refusal_is_told_with_the_next_move(refusing: dict[str, str]) -> None:
    told = in_a_process("storage.check_writable('s3://b/run')", refusing)
    assert "DataError: s3://b/run: cannot write there: S3 answers AccessDenied to PutObject; the keys" in told


def test_only_errors_of_s3_are_told_as_such(refusing: dict[str, str]) -> None:
    assert storage.s3_error(ValueError("x")) is None
    gone = refusing | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    code = "try: storage.exists('s3://b/k')\nexcept Exception as e: raise SystemExit(storage.s3_error(e))"
    assert in_a_process(code, gone).strip().endswith("look at AWS_ENDPOINT_URL")
