"""URL deduplication: one capture of a page stays, and pages that differ are left alone."""

from __future__ import annotations

from pipeline.crawl.url import page_key
from pipeline.dedup.url import Url


def test_the_most_recent_capture_of_a_page_stays(dedup, docs):
    urls = [
        "http://www.example.org/a?utm_source=x&b=2&a=1",
        "https://example.org/a/?a=1&b=2#top",
        "https://example.org/a?a=1&b=3",
        "https://example.org:443/a?b=2&a=1&fbclid=zz",
        "//example.org/a?gclid=q-7&a=1&b=2&gbraid=z",
    ]
    result = dedup(Url(), docs(["one", "two", "three", "four", "five"], url=urls, date=[1, 9, 1, 5, 6]))
    assert result["kept"].column("text").to_pylist() == ["two", "three"]
    assert {reason for reason, _, _ in result["removed"].values()} == {"url_duplicate"}
    assert {match for _, match, _ in result["removed"].values()} == {(1).to_bytes(16, "big")}


def test_the_longest_or_a_preferred_source_can_stay(dedup, docs):
    table = docs(
        ["short", "much longer text", "mid text"], url=["http://a/x"] * 3, date=[3, 1, 2], source=["p", "q", "r"]
    )
    assert dedup(Url(keep=["longest"]), table)["kept"].column("source").to_pylist() == ["q"]
    assert dedup(Url(keep=["source"], sources=["r", "p"]), table)["kept"].column("source").to_pylist() == ["r"]


def test_documents_without_a_url_stay(dedup, docs):
    assert dedup(Url(), docs(["a", "a", "b"], url=[None, None, None]))["kept"].num_rows == 3


def test_what_means_another_page_is_another_page():
    pages = ["http://a/x", "http://a/X", "http://a/x?id=1", "http://b/x", "http://a/x/y", "http://a:81/x", "not a url"]
    assert len({page_key(url) for url in pages}) == len(pages)


def test_a_source_that_loses_too_much_raises_the_alarm(dedup, docs, caplog):
    table = docs(["a", "b", "c"], url=["http://e.org/x"] * 3, source=["copies"] * 3)
    assert len(dedup(Url(alarm_share=0.5), table)["decided"]["alarms"]) == 1
    assert "dedup.url: source 'copies' lost 2 of 3" in caplog.text
