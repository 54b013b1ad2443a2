"""`corpusmill extract` gives what a run gives, and says why nothing came."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import corpusmill
from cluster import storage
from pipeline.extract.command import READ
from pipeline.extract.office import DOCX
from pipeline.progress import Console
from pipeline.recipe import from_mapping
from pipeline.run import run

TEXT = "Der Fluss trat in jenem Frühjahr über die Ufer, und die Bauern trugen ihr Vieh auf die Hügel. " * 3
PAGE = f"<html lang=de><head><title>Ein Titel</title></head><body><main><p>{TEXT}</p></main></body></html>"
MENU = "<html><body><nav></nav><script>let a = 1</script></body></html>"


@pytest.mark.parametrize("name", ["cc.warc.gz", "example.arc.gz", "example.pdf.warc.gz", "bad.arc"])
def test_the_records_of_an_archive_are_those_of_a_run(data: Path, tmp_path: Path, capsys, name: str) -> None:
    archive, out = str(data / "warc" / name), str(tmp_path / "run")
    steps = [{"crawl.warc": {"path": archive, "content_types": READ}}, "extract.main_content"]
    run(from_mapping({"steps": steps, "workers": 0, "max_failed_share": 1}), out, console=Console(quiet=True))
    made = [
        (row["url"], row.get("text", ""), row.get("reason"), row.get("error"))
        for kind in ("documents", "ledger")
        for shard in storage.list_files(f"{out}/{kind}")
        for row in pq.read_table(shard.path).to_pylist()
    ]
    corpusmill.main(["extract", archive, "--json"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made
    assert sorted(made, key=str) == sorted(((t["url"], t["text"], t["reason"], t["error"]) for t in told), key=str)


def test_a_page_of_an_archive_is_found_by_its_url(data: Path, capsys) -> None:
    archive, url = str(data / "warc/example.warc.gz"), "http://www.archive.org/"
    assert corpusmill.main(["extract", archive, "--url", url]) == 0
    told = capsys.readouterr()
    assert told.out == f"==> {url} <==\nPlease visit our website at: http://www.archive.org\n\n"
    assert f"{url}: text/html; encoding utf-8; 51 characters\n" in told.err
    assert corpusmill.main(["extract", archive, "--url", "http://example.com/none"]) == 1
    assert "0 records, 0 with text (only those of http://example.com/none)" in capsys.readouterr().err


def test_a_file_gives_its_text_alone_and_beside_it_what_was_decided(tmp_path: Path, capsys) -> None:
    (tmp_path / "page").write_text(PAGE, "utf-16")
    assert corpusmill.main(["extract", str(tmp_path / "page")]) == 0
    told = capsys.readouterr()
    assert told.out == TEXT.strip() + "\n"
    assert told.err.endswith(
        f"/page: text/html; encoding utf-16-le; language de; title Ein Titel; {len(TEXT.strip())} characters\n"
    )


def test_a_server_s_charset_is_heard(tmp_path: Path, capsys) -> None:
    text = "Река вышла из берегов, и крестьяне увели скот на холмы. " * 5
    (tmp_path / "page.html").write_bytes(f"<body><p>{text}</p>".encode("iso8859-5"))
    command = ["extract", str(tmp_path / "page.html"), "--json", "--type", "text/html; charset=iso-8859-5"]
    assert corpusmill.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["encoding"]) == (text.strip(), "iso8859-5")


def docx(text: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("word/document.xml", f'<w:document xmlns:w="w"><w:p><w:t>{text}</w:t></w:p></w:document>')
    return made.getvalue()


def test_a_kind_is_told_by_the_bytes_where_the_name_says_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "saved").write_bytes(docx("Ein Absatz"))
    assert corpusmill.main(["extract", str(tmp_path / "saved")]) == 0
    told = capsys.readouterr()
    assert told.out == "Ein Absatz\n"
    assert told.err.endswith(f"saved: {DOCX}; 10 characters\n")
    (tmp_path / "plain").write_text("a < b\n")
    assert corpusmill.main(["extract", str(tmp_path / "plain")]) == 0
    assert capsys.readouterr().out == "a < b\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("menu.html", MENU.encode(), "text/html; encoding utf-8; nothing: no_text, its markup holds no text\n"),
        ("torn.docx", docx("x")[:-30], f"{DOCX}; nothing: unreadable: docx: File is not a zip file\n"),
        ("empty", b"", "empty: empty; expected HTML, PDF, "),
        ("noise", bytes(range(256)) * 9, "noise: no file of a kind that is read; expected HTML, PDF, "),
    ],
)
def test_why_nothing_came_is_told_in_one_line(tmp_path: Path, capsys, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert corpusmill.main(["extract", str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_what_is_no_file_is_told(tmp_path: Path, capsys) -> None:
    for path, told in ((tmp_path, "a folder; give one of its files"), (tmp_path / "none", "no such file")):
        assert corpusmill.main(["extract", str(path)]) == 1
        assert capsys.readouterr().err == f"corpusmill: {path}: {told}\n"


def test_a_page_cannot_write_to_the_terminal(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "page.html").write_text(f"<title>a\x1b]0;b</title><body><p>{TEXT}\x1b[2J</p>")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert corpusmill.main(["extract", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "[2J" in said.out
