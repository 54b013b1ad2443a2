"""Sitemaps: hostile, broken and plain ones."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.sitemap import MOST_BYTES, read_sitemap

BASE = "http://a/maps/s.xml"


def test_a_broken_sitemap_gives_what_comes_before_the_break():
    assert read_sitemap(b"<urlset><url><loc>/1</loc></url><url><loc>/2", BASE).pages == ["http://a/1"]


def test_entities_and_bombs_are_refused():
    laughs = b'<!DOCTYPE u [<!ENTITY a "aaaa">]><urlset><url><loc>http://a/&a;</loc></url></urlset>'
    assert read_sitemap(laughs, BASE).pages == []
    bomb = gzip.compress(b"<urlset><url><loc>/1</loc></url>" + bytes(4 * MOST_BYTES), 1)
    assert read_sitemap(bomb, BASE).pages == ["http://a/1"]


def test_lastmod_in_every_form_of_the_protocol():
    entries = "".join(
        f"<url><loc>/{i}</loc><lastmod>{date}</lastmod></url>"
        for i, date in enumerate(["2026-02-03", "2026-02-03T04:05:06+02:00", "2019-01-01T00:00Z", "soon"])
    )
    found = read_sitemap(f"<urlset>{entries}</urlset>".encode(), BASE, datetime(2020, 1, 1, tzinfo=UTC))
    assert found.pages == ["http://a/0", "http://a/1", "http://a/3"]


@given(st.binary(max_size=300))
def test_no_bytes_raise(data):
    read_sitemap(data, BASE)
    read_sitemap(b"<urlset>" + data, BASE)
