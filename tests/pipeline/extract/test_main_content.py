import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.extract.main_content import MAX_BYTES, MainContent, extract
from pipeline.kernels.html_bytes import STATS
from pipeline.kernels.html_features import BRIDGE, bridged
from pipeline.kernels.html_tags import IN
from pipeline.schema import DOCUMENT, RECORD
from pipeline.step import Documents

SENTENCE = "Der Fluss trat in jenem Frühjahr über die Ufer, und die Bauern trugen ihr Vieh auf die Hügel. "
PAGE = """<!DOCTYPE html><html lang="de-AT"><head><title> Ein &amp; Titel </title>
<meta property="article:published_time" content="2021-03-04T05:06:07Z"></head><body>
<nav class="menu"><ul><li><a href="/">Startseite</a></li><li><a href="/a">Archiv</a></li></ul></nav>
<main><article class="post-content"><h1>Überschrift</h1><p>{0}</p><p>Zweitens: {0}</p>
<ul><li>Erster Punkt der Liste</li><li>Zweiter Punkt</li></ul>
<table><tr><th>Jahr</th><th>Pegel</th></tr><tr><td>1901</td><td>4,20 m</td></tr></table>
<pre>def f(x):
    return x &lt; 1</pre><p>Es gilt <math alttext="E=mc^2"><mi>E</mi></math> immer. {0}</p></article></main>
<footer class="footer"><a href="/i">Impressum</a> <a href="/d">Datenschutz</a></footer></body></html>"""
HTML = PAGE.format(SENTENCE * 3)


def batch_of(payloads, types=None):
    rows = [
        {"doc_id": i.to_bytes(16, "big"), "source": "t", "url": f"http://a/{i}", "content_type": t, "payload": payload}
        for i, (payload, t) in enumerate(zip(payloads, types or ["text/html"] * len(payloads), strict=True))
    ]
    return pa.RecordBatch.from_pylist(rows, RECORD)


def test_text_title_language_and_date_of_a_page():
    page = extract(HTML.encode())
    assert "Der Fluss trat in jenem Frühjahr" in page.text
    assert (page.title, page.language, page.encoding) == ("Ein & Titel", "de", "utf-8")
    assert page.published == "2021-03-04"
    for gone in ("Startseite", "Archiv", "Impressum", "Datenschutz"):
        assert gone not in page.text


def test_lists_tables_code_and_formulas_keep_their_form():
    text = extract(HTML.encode()).text
    assert "- Erster Punkt der Liste\n- Zweiter Punkt" in text
    assert "Jahr | Pegel\n1901 | 4,20 m" in text
    assert "def f(x):\n    return x < 1" in text
    assert "Es gilt $E=mc^2$ immer." in text


@given(st.lists(st.tuples(st.sampled_from("pt"), st.booleans(), st.floats(0, 0.5, width=32)), max_size=12))
@settings(deadline=None)
def test_only_tables_and_code_between_chosen_blocks_are_added_to_them(blocks):
    flags = np.array([IN["paragraph"], IN["table"]], np.uint32)
    element = np.array([kind == "t" for kind, _, _ in blocks], np.int32)
    stats, p = np.ones((len(blocks), STATS), np.float32), np.array([value for _, _, value in blocks], np.float32)
    chosen = np.array([is_chosen for _, is_chosen, _ in blocks], bool)
    expected = chosen.copy()
    places = np.flatnonzero(chosen).tolist()
    for left, right in pairwise(places):
        between = slice(left + 1, right)
        if right > left + 1 and element[between].all() and p[between].astype(float).mean() >= BRIDGE:
            expected[between] = True
    assert bridged(flags, element, stats, p, chosen).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "sentence",
    [
        "那年春天河水漫过了堤岸，农民们把牲畜赶上了山坡，等待洪水慢慢退去。",
        "その年の春、川が堤防を越えてあふれ、農民たちは家畜を丘の上へ連れて行った。",
        "في ذلك الربيع فاض النهر على ضفتيه، وحمل الفلاحون مواشيهم إلى التلال العالية.",
        "Той весной река вышла из берегов, и крестьяне увели скот на высокие холмы.",
    ],
)
def test_no_language_is_favoured(sentence):
    text = extract(PAGE.format(sentence * 6).encode()).text
    assert sentence * 6 in text
    assert "Archiv" not in text


def test_the_encoding_is_taken_from_bom_header_and_meta():
    assert "Frühjahr" in extract(HTML.encode("latin-1"), encoding="iso-8859-1").text
    assert "Frühjahr" in extract(HTML.encode("utf-16")).text
    assert "Frühjahr" in extract(HTML.replace("<head>", "<head><meta charset=windows-1252>").encode("cp1252")).text


def test_pages_without_text_are_removed_with_a_reason():
    docs = Documents(batch_of([HTML.encode(), b"<html><body></body></html>", b"", HTML.encode()]))
    rows, verdict = MainContent().transform(docs)
    assert rows.schema == DOCUMENT
    assert list(verdict.reason) == [None, "no_text", "no_text", None]


def test_a_small_page_without_any_hint_is_better_than_nothing():
    assert (
        "goes on"
        in extract(b"<html><body><p>" + b"The story goes on, as stories do. " * 8 + b"</p></body></html>").text
    )


def test_plain_text_passes_through():
    rows, verdict = MainContent().transform(Documents(batch_of([b"a < b\nline two\n"], ["text/plain"])))
    assert verdict is None
    assert rows.column("text").to_pylist() == ["a < b\nline two"]


def test_a_row_does_not_depend_on_its_batch():
    whole = batch_of([PAGE.format(SENTENCE * i).encode() for i in range(1, 9)])
    together, _ = MainContent().transform(Documents(whole))
    for i in range(8):
        alone, _ = MainContent().transform(Documents(whole.slice(i, 1)))
        assert alone.to_pylist() == together.slice(i, 1).to_pylist()


def test_a_script_only_page_gives_what_its_metadata_states():
    body = SENTENCE * 5
    page = f'<html><head><script type="application/ld+json">{{"articleBody": "{body}"}}</script></head><body>x</body>'
    assert extract(page.encode()).text == body.strip()


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise(data):
    extract(b"<html>" + data)


TAGS = """div p a b ul li table tr td th pre svg math noscript script style title template select h1 br img x-y form"""
tags = st.sampled_from(TAGS.split())
piece = st.one_of(
    tags.map(lambda t: f"<{t}>"),
    tags.map(lambda t: f"</{t}>"),
    tags.map(lambda t: f'<{t} class="post-body Ünit" id=\'a\' hidden style="display:none" alttext="x"'),
    st.sampled_from(["<!--", "-->", "<!", "<?x", "&amp;", "&#x1F600;", "&", "<", ">", '"', "'", "\x00", "]]>", "</"]),
    st.text(max_size=20),
)


@given(st.lists(piece, max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_markup_raises_and_all_spans_lie_in_the_page(pieces):
    from pipeline.kernels.html_scan import scan

    data = "".join(pieces).encode("utf-8", "replace")
    page = scan(data)
    assert (page.run_start <= page.run_end).all()
    assert (page.run_end <= len(data)).all()
    assert (page.parent < range(len(page.parent))).all()
    assert len(page.block_run) == len(page.block_element) + 1
    extract(data)


MEGABYTE = 1 << 20
HOSTILE = {
    "nested": b"<div>" * (2 * MEGABYTE) + b"text",
    "nested inline, unmatched ends": (b"<b>" * 300 + b"</div></p></i>" * 300) * 600,
    "one line of 50 MB": b"<p>" + b"word " * (10 * MEGABYTE),
    "nested tags of all kinds": b"<table><tr><td><ul><li><dl><dd><form><b><pre>" * (10 * MEGABYTE // 44) + b"text",
    "unclosed everything": b"<html><body><div class='a><p title=\"b<table><tr><td><ul><li><svg><math><a href=x"
    * 90_000,
    "attributes": b"<div " + b" ".join(b"a%d=1" % i for i in range(100_000)) + b">text</div>",
    "unclosed comment": b"<p>text</p><!--" + b"x" * (10 * MEGABYTE),
    "unclosed quote": b'<p>text</p><a href="' + b"x" * (10 * MEGABYTE),
    "unclosed svg": b"<svg><g>" * MEGABYTE + b"<p>text",
    "unclosed titles": b"<title>" * MEGABYTE,
    "lone less-than signs": b"<" * (8 * MEGABYTE),
    "table cells": b"<table>" + b"<td>x" * (2 * MEGABYTE),
    "list items": b"<ul><li>" * MEGABYTE,
    "paragraphs": b"<p>a" * (2 * MEGABYTE),
    "zero bytes": b"\x00" * (8 * MEGABYTE),
    "invalid UTF-8": b"<p>" + b"\xff\xfe\xfd" * MEGABYTE,
    "entities": b"<p>" + b"&amp;" * (2 * MEGABYTE),
    "math": b"<math>" * MEGABYTE,
    "math with an end": b"<math>" * MEGABYTE + b"</math>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_end(name):
    start = time.process_time()
    extract(HOSTILE[name])
    # no timing of a machine, but an input that takes quadratic time takes hours
    assert time.process_time() - start < 60


BOUNDED = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_main_content import HOSTILE
from pipeline.extract.main_content import extract
extract(b"<p>warm</p>")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for page in HOSTILE.values():
    extract(page)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_hostile_pages_take_no_more_memory_than_the_bound():
    import subprocess
    import sys

    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tests.parents[2]), str(tests)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1024  # MiB above what the process had, for pages of up to 50 MB


def test_hostile_pages_leave_one_row_each_and_the_rest_of_the_batch_as_it_is():
    names = ("nested", "one line of 50 MB", "unclosed everything", "attributes", "invalid UTF-8", "zero bytes")
    docs = Documents(batch_of([*(HOSTILE[name] for name in names), HTML.encode()]))
    rows, verdict = MainContent().transform(docs)
    assert rows.num_rows == len(names) + 1
    texts = rows.column("text").to_pylist()
    assert texts[-1] == extract(HTML.encode()).text
    assert verdict is not None
    for text, reason in zip(texts, verdict.reason, strict=True):
        assert (reason == "no_text") if not text.strip() else reason is None


def test_what_lies_behind_the_limit_is_not_read():
    page = extract(b"<p>" + SENTENCE.encode() + b"</p>" + b" " * MAX_BYTES + b"<p>hidden " + SENTENCE.encode() * 9)
    assert "hidden" not in page.text


@pytest.mark.skipif(
    not (Path(__file__).parents[4] / "shared/data/html_extraction").exists(), reason="needs ../shared/data"
)
def test_the_article_benchmark_is_extracted_better_than_by_the_best_open_extractor():
    import importlib.util

    path = Path(__file__).parents[3] / "benchmarks/extraction_sets.py"
    spec = importlib.util.spec_from_file_location("extraction_sets", path)
    sets = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["extraction_sets"] = sets
    spec.loader.exec_module(sets)
    pages = list(sets._articles())
    f1 = sets.shingle_f1([(extract(page.html, url=page.url).text, page.gold) for page in pages])
    assert f1 > 0.956  # trafilatura 2.3.1 on the same half
