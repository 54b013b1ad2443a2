import bz2
import datetime
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import RecipeError
from pipeline.crawl.corpus import Corpus


def rows_of(path, **fields):
    source = Corpus(path=str(path), **fields)
    source.check()
    rows = []
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            for i, row in enumerate(batch.to_pylist()):
                row["reason"] = None if verdict is None else verdict.reason[i]
                row["error"] = None if verdict is None or verdict.error is None else verdict.error[i]
                rows.append(row)
    return rows


def lines(count=300):
    return [
        json.dumps({"text": f"document {i} " + "ö" * (i % 40), "url": f"http://a/{i}", "date": "2024-01-02T03:04:05Z"})
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
    ],
)
def test_every_compression_gives_the_same_documents(tmp_path, ending, pack):
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack("\n".join(lines()).encode()))
    rows = rows_of(tmp_path)
    assert [row["text"].split()[1] for row in rows] == [str(i) for i in range(300)]
    assert rows[7]["url"] == "http://a/7"
    assert rows[7]["date"].isoformat() == "2024-01-02T03:04:05+00:00"


@pytest.mark.parametrize("size", [1024, 1031, 5000, 1 << 20])
def test_splitting_a_file_changes_nothing(tmp_path, size):
    (tmp_path / "a.jsonl").write_text("\n".join(lines()) + "\n")
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(3000)]}), tmp_path / "b.parquet", row_group_size=100)
    assert rows_of(tmp_path, split_bytes=size) == rows_of(tmp_path)


def test_very_many_small_files_share_tasks_and_keep_their_identities(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text(f"text {number}" if number % 7 else "")
    (tmp_path / "900.jsonl").write_text("\n".join(lines()) + "\n")
    apart = [row for number in range(3) for row in rows_of(tmp_path / f"{number}*.txt")]
    assert len(Corpus(path=str(tmp_path / "0*.txt")).tasks(None)) == 100
    assert len(Corpus(path=str(tmp_path)).tasks(None)) == 1
    assert rows_of(tmp_path) == [*apart, *rows_of(tmp_path / "900.jsonl")]
    (tmp_path / "901.txt").write_text("x" * (1 << 20))
    assert [len(task["files"]) for task in Corpus(path=str(tmp_path)).tasks(None)] == [301, 1]


def test_bad_lines_are_failed_rows_that_name_the_line(tmp_path):
    content = lines(5)
    content[1:4] = ["{broken", "[1, 2]", '{"txt": "x"}']
    (tmp_path / "a.jsonl").write_text("\n".join(content))
    rows = rows_of(tmp_path)
    assert [row["reason"] for row in rows] == [None, "bad_line", "bad_line", "no_text_field", None]
    assert f"byte {len(content[0].encode()) + 1} is not JSON" in rows[1]["error"]
    assert "did you mean 'txt'" in rows[3]["error"]


def test_a_cut_off_gzip_file_gives_what_comes_before_and_one_failed_row(tmp_path):
    packed = gzip.compress("\n".join(lines(3000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    rows = rows_of(tmp_path)
    assert len(rows) > 500
    assert [row["reason"] for row in rows[:-1]] == [None] * (len(rows) - 1)
    assert "damaged" in rows[-1]["error"]


def test_fields_can_be_named_and_nested(tmp_path):
    item = {"body": {"raw": "hello"}, "meta": {"lang": "de", "from": "books"}, "key": 17}
    (tmp_path / "a.jsonl").write_text(json.dumps(item) + "\n" + json.dumps(item | {"key": 18}))
    names = {"text_field": "body.raw", "language_field": "meta.lang", "source_field": "meta.from", "id_field": "key"}
    rows = rows_of(tmp_path, **names)
    assert [(row["text"], row["language"], row["source"]) for row in rows] == [("hello", "de", "books")] * 2
    assert rows[0]["doc_id"] != rows[1]["doc_id"]


def test_an_empty_document_and_a_lone_surrogate_stop_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n{"text": "a\\ud800b"}\n\n{"text": "c"}')
    rows = rows_of(tmp_path)
    assert [row["reason"] for row in rows] == ["empty", None, None]
    assert rows[1]["text"] == "a?b"


def test_text_files_are_one_document_each(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"second"))
    assert [row["text"] for row in rows_of(tmp_path)] == ["first", "second"]


def damaged(name, data):
    """The data compressed as the file's name says, and without their second half."""
    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}.get(name.rpartition(".")[2])
    packed = pack(data) if pack else pa.compress(data, "zstd", asbytes=True)
    return packed[: len(packed) // 2]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.bz2", "a.txt.zst", "a.csv.gz", "a.jsonl.zst"])
def test_damaged_and_misnamed_files_cost_themselves_and_no_others(tmp_path, name):
    data = "\n".join(lines()).encode()
    (tmp_path / name).write_bytes(damaged(name, data))
    (tmp_path / f"b{name}").write_bytes(data)  # not compressed at all
    (tmp_path / "c.txt").write_text("whole")
    rows = rows_of(tmp_path)
    assert rows[-1]["text"] == "whole"
    failed = [row["error"].partition(",")[0] for row in rows if "is damaged" in (row["error"] or "")]
    assert failed == [name, f"b{name}"]


def test_bytes_behind_a_gzip_member_lose_nothing(tmp_path):
    packed = gzip.compress(("\n".join(lines(20)) + "\n").encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed + b"no gzip member")
    assert [row["reason"] for row in rows_of(tmp_path)] == [None] * 20 + ["bad_line"]


def test_a_damaged_row_group_costs_its_rows_and_a_file_that_is_no_parquet_one(tmp_path):
    table = pa.table({"text": [f"text {i} " + "x" * (i % 97) for i in range(400)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = pq.read_metadata(tmp_path / "a.parquet").row_group(2).column(0).dictionary_page_offset
    data[start : start + 60] = b"\xff" * 60
    (tmp_path / "a.parquet").write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    rows = rows_of(tmp_path)
    assert rows == rows_of(tmp_path, split_bytes=1024)
    assert [row["text"].split()[1] for row in rows if row["reason"] is None] == [
        str(i) for i in range(400) if not 200 <= i < 300
    ]
    errors = [row["error"] for row in rows if row["reason"] is not None]
    assert errors[0].startswith("a.parquet, rows 200 to 299 cannot be read, row group 2 is damaged")
    assert ["not a whole Parquet file" in error for error in errors[1:]] == [True, True]


def test_parquet_of_other_writers_is_read_as_what_it_means(tmp_path):
    texts = ["one", "zwölf", "三"]
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 2, 5, 8)))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"\xff\xfeone\xe4\xb8\x89")])
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
    for number, kind in enumerate(kinds):
        column = pa.array([text.encode() for text in texts]).cast(kind)
        pq.write_table(pa.table({"text": column}), tmp_path / f"{number}.parquet")
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), tmp_path / "5.parquet")
    pq.write_table(pa.table({"text": broken}), tmp_path / "6.parquet")
    pq.ParquetWriter(tmp_path / "7.parquet", pa.schema([("text", pa.string())])).close()  # no row group
    dates = pa.array([1_700_000_000_123_456_789, None, 0], pa.timestamp("ns"))
    pq.write_table(pa.table({"text": texts, "date": dates}), tmp_path / "8.parquet")
    pq.write_table(pa.table({"text": ["x"], "date": pa.array([2**62], pa.timestamp("us"))}), tmp_path / "9.parquet")
    pq.write_table(pa.table({"text": [None, "y"]}), tmp_path / "n.parquet")
    rows = rows_of(tmp_path)
    assert [row["text"] for row in rows[:18]] == texts * 6
    assert [(row["text"], row["reason"]) for row in rows[18:21]] == [("", "no_text_field"), ("one", None), ("三", None)]
    assert "bytes that are no UTF-8" in rows[18]["error"]
    assert [row["date"] and row["date"].isoformat() for row in rows[21:25]] == [
        "2023-11-14T22:13:20+00:00", None, "1970-01-01T00:00:00+00:00", None,
    ]  # fmt: skip
    assert "holds null" in rows[25]["error"]
    assert rows[26]["text"] == "y"


def test_what_cannot_be_read_is_refused_before_it_starts(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(RecipeError, match="cannot tell the format"):
        Corpus(path=str(tmp_path)).check()
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match="no column 'text'"):
        Corpus(path=str(tmp_path / "a.parquet")).check()
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text("")
    with pytest.raises(RecipeError, match=r"the name of '.*\\udcff\.jsonl' is no UTF-8; rename the file"):
        Corpus(path=str(tmp_path / "*.jsonl")).check()
    with pytest.raises(RecipeError, match="no file at"):
        Corpus(path=str(tmp_path / "none.jsonl")).check()


def test_a_json_array_is_read_element_by_element(tmp_path):
    """As data sets for tuning come: one file, one array, on one line or indented, plain or packed."""
    whole = [json.loads(line) for line in lines(3000)]
    (tmp_path / "a.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf " + json.dumps(whole).encode()))
    (tmp_path / "c.json").write_text("[]\n")
    (tmp_path / "d.json").write_text("\n".join(lines(2)))  # lines, whatever the ending says
    rows = rows_of(tmp_path, split_bytes=1024, max_document_bytes=1000)
    assert [row["text"] for row in rows] == [row["text"] for row in whole] * 2 + [row["text"] for row in whole[:2]]
    assert len({row["doc_id"] for row in rows}) == 6002
    assert {row["reason"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        ("", "breaks off at element 2"),
        (', {"text": "c', "breaks off at element 2"),
        ("]\n[1]", "follows the array of 2"),
        (", 7", "element 2 is a JSON int"),
    ],
)
def test_a_damaged_json_array_gives_what_comes_before_and_one_failed_row(tmp_path, behind, told):
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b"}' + behind + ("]" if "7" in behind else ""))
    rows = rows_of(tmp_path)
    assert [row["text"] for row in rows[:2]] == ["a", "b"]
    assert [row["reason"] for row in rows] == [None, None, "bad_line"]
    assert told in rows[2]["error"]


def test_what_other_systems_leave_beside_the_data_is_passed_over(tmp_path):
    (tmp_path / "part-0.jsonl").write_text("\n".join(lines(3)))
    for name in ("_SUCCESS", ".part-0.jsonl.crc", "_metadata"):
        (tmp_path / name).write_text("x")
    (tmp_path / "_kept.jsonl").write_text("\n".join(lines(2)))
    assert len(rows_of(tmp_path)) == 5
    # what `hf download` and Delta tables leave, and the card of a data set
    for name in (
        ".cache/huggingface/download/a.jsonl.metadata",
        ".cache/huggingface/CACHEDIR.TAG",
        "_delta_log/0.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("README.md", "LICENSE", "data/LICENSE.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("About these data.")
    assert len(rows_of(tmp_path)) == 5


def test_a_readme_among_texts_is_a_text(tmp_path):
    (tmp_path / "README.md").write_text("Read me.")
    (tmp_path / "notes.txt").write_text("And me.")
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("value", "date"),
    [
        (1716000000, "2024-05-18T02:40:00"),
        (1716000000.0, "2024-05-18T02:40:00"),
        (1716000000123, "2024-05-18T02:40:00"),
        ("1716000000", "2024-05-18T02:40:00"),
        ("20240518015810", "2024-05-18T01:58:10"),
        (20240518, "2024-05-18T00:00:00"),
        ("20249918015810", None),
        (2024, None),
        (True, None),
        (float("inf"), None),
        (1 << 70, None),
    ],
)
def test_dates_are_iso_8601_or_unix_times(tmp_path, value, date):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "date": value}))
    (row,) = rows_of(tmp_path)
    assert (row["date"] and row["date"].isoformat()) == (date and date + "+00:00")


def test_other_fields_are_carried_along_as_columns_of_their_type(tmp_path):
    content = [
        {"text": "a", "meta": {"score": 3}, "n": 2.0, "tags": ["x", "ö"]},
        {"text": "b", "meta": None, "n": "7", "tags": "y"},
        {"text": "c", "meta": {"score": "high"}, "n": 1 << 70, "tags": True},
        {"text": "d", "meta": {"score": -1.5}, "n": 2.7, "tags": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, content)))
    rows = rows_of(tmp_path, keep={"meta.score": "number", "n": "integer", "tags": "text"})
    found = [(row["meta.score"], row["n"], row["tags"]) for row in rows]
    assert found == [(3.0, 2, '["x", "ö"]'), (None, 7, "y"), (None, None, "true"), (-1.5, None, None)]
    with pytest.raises(RecipeError, match="keep cannot name source"):
        rows_of(tmp_path, keep={"source": "text"})


def test_the_documents_of_another_run_keep_their_doc_ids(tmp_path):
    ids = [bytes([200 + i, *range(240, 255)]) for i in range(3)]
    stamps = pa.array([1_700_000_000] * 3, pa.timestamp("s"))
    table = {"doc_id": pa.array(ids, pa.binary(16)), "text": list("abc"), "meta": [{"when": 1}] * 3, "seen": stamps}
    pq.write_table(pa.table(table), tmp_path / "part.parquet")
    assert [row["doc_id"] for row in rows_of(tmp_path, id_field="doc_id")] == ids
    assert "2023-11-14" in rows_of(tmp_path, text_field=".")[0]["text"]  # dates have no form in JSON


def test_a_whole_row_of_a_parquet_file_can_be_the_text(tmp_path):
    row = {"prompt": [{"role": "user", "content": "猫?"}], "completion": "yes", "day": datetime.date(2026, 1, 2)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (found,) = rows_of(tmp_path / "a.parquet", text_field=".")
    assert json.loads(found["text"]) == row | {"day": "2026-01-02"}
