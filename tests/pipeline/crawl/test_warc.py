import ast
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from fastwarc.warc import WarcRecord, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RecipeError
from pipeline.crawl.archive import records, salvage
from pipeline.crawl.warc import Warc
from pipeline.extract.main_content import extract

DATA = Path(__file__).parents[4] / "shared/data/warc"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def rows_of(path, **fields):
    source = Warc(path=str(path), **fields)
    source.check()
    rows = []
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            for i, row in enumerate(batch.to_pylist()):
                row["reason"] = None if verdict is None else verdict.reason[i]
                row["error"] = None if verdict is None or verdict.error is None else verdict.error[i]
                rows.append(row)
    return rows


def reasons(rows):
    return Counter(row["reason"] for row in rows)


def member(url, body, *, head=b"Content-Type: text/html", status=b"200 OK", kind="response", compress=True):
    out = io.BytesIO()
    record = WarcRecord()
    record.init_headers(record_type=getattr(WarcRecordType, kind))
    record.headers["WARC-Target-URI"] = url
    record.headers["WARC-Date"] = "2024-05-18T01:58:10Z"
    record.headers["Content-Type"] = "application/http; msgtype=response"
    record.set_bytes_content(b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n\r\n" + body)
    record.write(out)
    return gzip.compress(out.getvalue()) if compress else out.getvalue()


def page(i):
    return b"<html><body><p>page %d " % i + b"words " * (20 + i) + b"</body></html>"


def test_every_record_is_a_row_and_what_is_no_page_has_a_reason(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(
        member("http://a/1", page(1))
        + member("http://a/1", b"GET / HTTP/1.1", kind="request")
        + member("http://a/2", b"", status=b"301 Moved")
        + member("http://a/3", page(3), status=b"404 Not Found")
        + member("http://a/4", b"PNG", head=b"Content-Type: image/png")
        + member("http://a/5", b" \n ")
        + member("http://a/6", b"", kind="revisit")
        + member("http://a/7", page(5000))
    )
    rows = rows_of(tmp_path, max_record_bytes=20_000)
    found = {row["url"][-1]: row["reason"] for row in rows}
    assert found == {
        "1": None,
        "2": "redirect",
        "3": "http_status",
        "4": "content_type",
        "5": "empty",
        "6": "revisit",
        "7": "too_large",
    }
    assert rows[0]["payload"] == page(1)
    assert rows[0]["date"].isoformat() == "2024-05-18T01:58:10+00:00"


@pytest.mark.parametrize("compression", ["gz", "zst", "plain"])
def test_damage_in_the_middle_costs_one_row(tmp_path, compression):
    plain = [member(f"http://a/{i}", page(i), compress=False) for i in range(6)]
    if compression == "gz":
        members = [gzip.compress(record) for record in plain]
    elif compression == "zst":
        members = [pa.compress(record, "zstd", asbytes=True) for record in plain]
    else:
        members = plain
    broken = bytearray(members[3])
    if compression == "plain":
        broken[:5] = b"XXXX/"
    else:
        broken[len(broken) // 2 : len(broken) // 2 + 30] = bytes(30)
    (tmp_path / "a.warc").write_bytes(b"".join([*members[:3], bytes(broken), *members[4:]]))
    rows = rows_of(tmp_path / "a.warc")
    assert [row["url"] for row in rows if row["reason"] is None] == [f"http://a/{i}" for i in (0, 1, 2, 4, 5)]
    failed = [row for row in rows if row["error"]]
    assert reasons(rows) == {None: 5, "damaged": len(failed)}
    assert failed
    assert all("a.warc" in row["error"] for row in failed)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_leaves_the_records_of_other_members_alone(tmp_path_factory, data):
    members = [member(f"http://a/{i}", page(i)) for i in range(5)]
    whole = bytearray(b"".join(members))
    start = int(data.draw(st.floats(0, 0.999)) * len(whole))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    whole[start : start + len(noise)] = noise
    file = tmp_path_factory.mktemp("w") / "a.warc.gz"
    file.write_bytes(whole)
    urls = {row["url"] for row in rows_of(file) if row["reason"] is None}
    at = 0
    for i, part in enumerate(members):
        touched = at < start + len(noise) and start < at + len(part)
        if not touched:
            assert f"http://a/{i}" in urls
        at += len(part)


@pytest.mark.parametrize(
    ("start", "noise"),
    [
        (0, b"WARC/1.0\r\n"),
        (0, b"filedesc:\r\n"),
        (0, b"\x1f\x8b\x08\x1f\x8b\x08\x00"),
        (0, b"\x28\xb5\x2f\xfdWARC/1.0\r\n"),
        (0, b"P*M\x18WARC/"),
        ("flags of the second member", b"\x0d"),
    ],
)
def test_damage_that_looks_like_another_kind_of_archive(tmp_path, start, noise):
    members = [member(f"http://a/{i}", page(i)) for i in range(5)]
    whole = bytearray(b"".join(members))
    lost = 0 if start == 0 else 1
    start = 0 if start == 0 else len(members[0]) + 3  # a flag says that a long field follows, up to the file's end
    whole[start : start + len(noise)] = noise
    (tmp_path / "a.warc.gz").write_bytes(whole)
    rows = rows_of(tmp_path / "a.warc.gz")
    assert {r["url"] for r in rows if r["reason"] is None} >= {f"http://a/{i}" for i in range(5) if i != lost}
    assert any(row["reason"] == "damaged" for row in rows)


def test_ids_depend_on_the_file_below_the_root_and_the_record(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub/a.warc.gz").write_bytes(member("http://a/1", page(1)) * 2)
    here = [row["doc_id"] for row in rows_of(tmp_path / "one/**/*.warc.gz")]
    moved = [row["doc_id"] for row in rows_of(tmp_path / "two/**/*.warc.gz")]
    assert here == moved
    assert len(set(here)) == 2


def test_files_with_one_name_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.warc.gz").write_bytes(member("http://a/1", page(1)))
    with pytest.raises(RecipeError, match="have the same name"):
        Warc(path=(f"{tmp_path}/one/*.gz", f"{tmp_path}/two/*.gz")).check()
    with pytest.raises(RecipeError, match="no file at"):
        Warc(path=str(tmp_path / "absent/*.gz")).check()


def test_batches_are_bounded(tmp_path):
    (tmp_path / "a.warc").write_bytes(
        b"".join(member(f"http://a/{i}", page(i % 50), compress=False) for i in range(2500))
    )
    source = Warc(path=str(tmp_path / "a.warc"))
    sizes = [batch.num_rows for task in source.tasks(None) for batch, _ in source.read(task)]
    assert sizes == [1000, 1000, 500]


def test_a_bomb_is_cut_at_the_limit(tmp_path):
    bomb = gzip.compress(bytes(200_000_000), 9)
    head = b"Content-Type: text/html\r\nContent-Encoding: gzip"
    (tmp_path / "a.warc.gz").write_bytes(member("http://a/bomb", bomb, head=head) + member("http://a/1", page(1)))
    rows = rows_of(tmp_path, max_record_bytes=1 << 20)
    assert [row["reason"] for row in rows] == ["too_large", None]


@needs_data
def test_both_readers_agree_on_every_healthy_archive():
    for line in (DATA / "manifest.jsonl").read_text().splitlines():
        name = json.loads(line)["file"]
        with pa.OSFile(str(DATA / name)) as a, pa.OSFile(str(DATA / name)) as b:
            fast = list(records(a, max_bytes=1 << 24))
            slow = list(salvage(b, max_bytes=1 << 24, skip=("warcinfo", "request", "metadata")))
        assert [(r.number, r.block, r.problem) for r in fast] == [(r.number, r.block, r.problem) for r in slow], name


@needs_data
def test_archive_counts_are_those_that_warcio_reads():
    checked = 0
    for line in (DATA / "manifest.jsonl").read_text().splitlines():
        entry = json.loads(line)
        counts, detail = entry["warcio_1_8_1_records"], entry["warcio_detail"] or ""
        if not counts or "Failed" in detail or "Error" in detail or ".arc" in entry["file"]:
            continue
        # a damaged record is counted by warcio too, where it has a header
        expected = Counter(ast.literal_eval(counts))
        with pa.OSFile(str(DATA / entry["file"])) as file:
            found = Counter(r.kind for r in records(file, max_bytes=1 << 24, skip=()) if r.number >= 0)
        assert found == expected, entry["file"]
        checked += 1
    assert checked > 30


@needs_data
def test_arc_and_warc_of_one_crawl_give_the_same_urls_and_pages():
    def pages(name):
        return sorted((row["url"], row["reason"], row["payload"]) for row in rows_of(DATA / name))

    assert len(pages("example.arc.gz")) == 299
    assert pages("example.arc.gz") == pages("example.warc.gz")


@needs_data
def test_compressed_bodies_give_the_same_text():
    texts = set()
    for coding in ("none", "gzip", "brotli"):
        for ending in ("", ".gz"):
            rows = rows_of(DATA / f"transfer_compression_{coding}.warc{ending}")
            texts |= {extract(row["payload"]).text for row in rows if row["reason"] is None}
    assert len(texts) == 1
    assert "GZip and Brotli transmission compression" in texts.pop()


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clipped.warc.gz", {"damaged": 1}),
        ("corrupted-mid-record.warc.gz.open", {None: 12, "damaged": 1}),
        ("corrupted-trailing-bytes.warc.gz.open", {None: 30, "damaged": 1}),
        ("good.warc.gz.open", {None: 50}),
        ("badexample.arc.gz", {"content_type": 2, "damaged": 2}),
        ("bad.arc", {"content_type": 1, "damaged": 2}),
        ("hi.gz", {"damaged": 1}),
        ("double-single-inflate-error.gz", {"damaged": 2}),
        ("example-wrong-chunks.warc.gz", {None: 1}),
        ("iana.warc.gz", {None: 16, "content_type": 28, "revisit": 123, "redirect": 4}),
        ("dupes.warc.gz", {None: 1, "redirect": 1, "revisit": 9, "content_type": 1}),
        ("example-url-agnostic-revisit.warc.gz", {"revisit": 1}),
        ("whirlwind.warc.wet.gz", {None: 1}),
        ("whirlwind.warc.gz", {None: 1}),
        ("mutliple-headers.warc", {None: 1}),
    ],
)
def test_known_archives(name, expected):
    assert reasons(rows_of(DATA / name)) == expected


@needs_data
def test_no_two_rows_share_an_identity():
    ids = [row["doc_id"] for row in rows_of(DATA / "*.*")]
    assert len(ids) == len(set(ids)) > 900
