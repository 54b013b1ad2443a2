"""Wikitext as plain text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.extract.wikitext import plain


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[b]] [[c|d]] [[e#f|g]]s", "a b d gs"),
        ("x{{t|a={{u|[[v]]}}}}y", "xy"),
        ("open {{ stays", "open stays"),
        ("a<ref name=x>[[gone]]</ref>b<ref name=x />c", "abc"),
        ("[[Datei:A.jpg|mini|Ein [[Bild]] hier]]Text", "Text"),
        ("文章[[分类:河流]]\n[[Category:Rivers|x]]", "文章"),
        ("[[:Kategorie:Fluss]]", "Kategorie:Fluss"),
        ("before\n{| class=x\n| a || {{t}}\n{|\n| in\n|}\n|}\nafter", "before\n\nafter"),
        ("== Heading ==\n* one\n** two\n# three\n: four", "Heading\n\n- one\n- two\n- three\nfour"),
        ("[https://a.b/c the page] [https://a.b/d]", "the page"),
        ("<math>a < b^2</math> <nowiki>[[x]]</nowiki> &lt;b&gt;", "$a < b^2$ [[x]] <b>"),
        ("<syntaxhighlight lang=py>\nif x:\n    y()\n</syntaxhighlight>", "if x:\n    y()"),
        ("a<!-- no -->b __NOTOC__", "ab"),
        ("Fluss ({{IPA|x}}) und", "Fluss und"),
    ],
)
def test_what_a_reader_sees_stays(wikitext, text):
    assert plain(wikitext) == text


@given(st.text(alphabet="{}[]|=<>/!-refmathcode'*#: \n&;a\x02\x03", max_size=120))
@settings(max_examples=400, deadline=None)
def test_no_markup_raises_and_none_of_the_marks_is_left(wikitext):
    text = plain(wikitext)
    assert "\x02" not in text
    assert "\x03" not in text


@pytest.mark.parametrize(
    "piece", ["{{", "[[", "{|\n", "<ref>", "<ref ", "[[a:", "[http://", "<!--", "<math>", "=", "'", "|}\n"]
)
def test_unclosed_markup_comes_to_an_end(piece):
    # 200,000 of them: anything but linear time would take hours here
    assert len(plain(piece * 200_000)) <= len(piece) * 200_000
