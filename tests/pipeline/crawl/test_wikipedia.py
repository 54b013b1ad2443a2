"""MediaWiki dumps: what is an article, multistream bz2, damage."""

from __future__ import annotations

import bz2
from html import escape

import pytest

from pipeline.crawl.wikipedia import Wikipedia

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>Wikipedia</sitename>'
    "<base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base></siteinfo>\n"
)


def page(title, text, *, ns=0, more="", model="wikitext"):
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>7</id>{more}<revision><id>99</id>"
        f"<timestamp>2026-01-02T03:04:05Z</timestamp><contributor><username>x</username><id>5</id></contributor>"
        f"<model>{model}</model><text bytes='1' xml:space='preserve'>{escape(text)}</text></revision></page>\n"
    )


PAGES = [
    page("Große Elbe", "'''Elbe''' ist ein [[Fluss]] & {{Vorlage}}mehr."),
    page("Elb", "#WEITERLEITUNG [[Elbe]]", more='<redirect title="Elbe" />'),
    page("Diskussion:Elbe", "Hm.", ns=1),
    page("Modul:X", "return 1", model="Scribunto"),
    page("Leer", "{{nur eine Vorlage}}"),
    page("C++/STL", "Eine [[Bibliothek (Programmierung)|Bibliothek]]."),
]


def rows_of(path, **fields):
    source = Wikipedia(path=str(path), **fields)
    source.check()
    out = []
    for task in source.tasks(None):
        for batch, verdict in source.read(task):
            for i, row in enumerate(batch.to_pylist()):
                error = verdict.error[i] if verdict is not None and verdict.error is not None else None
                out.append(row | {"reason": verdict.reason[i] if verdict else None, "error": error})
    return out


@pytest.mark.parametrize("streams", [1, 3])
def test_articles_become_text_and_other_pages_have_a_reason(tmp_path, streams):
    parts = [HEAD, "".join(PAGES), "</mediawiki>"] if streams == 3 else [HEAD + "".join(PAGES) + "</mediawiki>"]
    (tmp_path / "dewiki.xml.bz2").write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))
    rows = rows_of(tmp_path / "dewiki.xml.bz2")
    assert [row["reason"] for row in rows] == [None, "redirect", "namespace", "content_model", "empty", None]
    assert rows[0]["text"] == "Elbe ist ein Fluss & mehr."
    assert (rows[0]["title"], rows[0]["language"]) == ("Große Elbe", "de")
    assert rows[0]["url"] == "https://de.wikipedia.org/wiki/Gro%C3%9Fe_Elbe"
    assert rows[0]["date"].isoformat() == "2026-01-02T03:04:05+00:00"
    assert rows[5]["url"] == "https://de.wikipedia.org/wiki/C%2B%2B/STL"
    assert len({row["doc_id"] for row in rows}) == 6


def test_a_cut_off_dump_gives_the_pages_before_and_one_failed_row(tmp_path):
    articles = [page(f"Seite {i}", f"Text der Seite {i}. " * 20) for i in range(300)]
    packed = b"".join(bz2.compress(part.encode()) for part in (HEAD, *articles))
    (tmp_path / "a.xml.bz2").write_bytes(packed[: len(packed) // 2 + 9])
    rows = rows_of(tmp_path)
    assert len(rows) > 100
    assert [row["title"] for row in rows[:-1]] == [f"Seite {i}" for i in range(len(rows) - 1)]
    assert rows[-1]["reason"] == "error"
    assert "damaged" in rows[-1]["error"]


def test_entities_and_huge_pages_are_bounded(tmp_path):
    bomb = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">]><mediawiki><page><title>&a;</title></page></mediawiki>'
    (tmp_path / "a.xml").write_text(bomb)
    (tmp_path / "b.xml").write_text(HEAD + page("Lang", "x" * 5000) + page("Kurz", "kurz") + "</mediawiki>")
    rows = rows_of(tmp_path, max_page_bytes=1000)
    assert [row["reason"] for row in rows] == ["error", "too_large", None]
