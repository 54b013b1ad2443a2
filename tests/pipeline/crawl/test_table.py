"""CSV and TSV: what quotes hold, what bad rows say."""

from __future__ import annotations

import csv
import gzip
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.corpus import Corpus
from pipeline.crawl.table import rows_of

cell = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00\r"), max_size=12)


@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_what_was_written_is_read(rows):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("text", "url"), *rows])
    found = list(rows_of(io.BytesIO(out.getvalue().encode()), ",", 1 << 20))
    assert [(row["text"], row["url"]) for _, row, _ in found] == rows


@given(st.binary(max_size=200), st.sampled_from([",", "\t"]))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise(data, delimiter):
    numbers = [number for number, _, _ in rows_of(io.BytesIO(data), delimiter, 50)]
    assert numbers == sorted(set(numbers))


def reasons_of(folder):
    source = Corpus(path=str(folder))
    source.check()
    out = []
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            for i, row in enumerate(batch.to_pylist()):
                out.append((row["text"], row["url"], verdict.reason[i] if verdict else None))
    return out


def test_tables_are_documents_and_a_bad_row_costs_itself(tmp_path):
    table = '\ufefftext,url\n"one, ""two""\nthree",http://a/1\nonly one field\n,http://a/2\nlast,http://a/3\n'
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "b.tsv").write_text('url\ttext\nhttp://b/1\tsays "hi\\n"\n')
    assert reasons_of(tmp_path) == [
        ('one, "two"\nthree', "http://a/1", None),
        ("only one field\r\n", None, "bad_line"),
        ("", "http://a/2", "empty"),
        ("last", "http://a/3", None),
        ('says "hi\n"', "http://b/1", None),
    ]


def test_a_cut_off_table_gives_what_comes_before(tmp_path):
    packed = gzip.compress(
        b"text\n" + b"".join(b"row %d %s\n" % (i, str(hash(i * 7919)).encode()) for i in range(9999))
    )
    (tmp_path / "a.csv.gz").write_bytes(packed[: len(packed) // 2])
    found = reasons_of(tmp_path)
    assert len(found) > 1000
    assert [reason for _, _, reason in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1][2] == "bad_line"
