"""Every page of the project: narrow windows, dark ones, and titles that are text."""

from cluster.page import document, table


def test_a_page_fits_a_phone_and_the_dark_and_escapes_its_title():
    page = document("<b>runs/a", "<h1>x</h1>", "p { margin: 0 }")
    assert "<title>&lt;b&gt;runs/a</title>" in page
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert page.endswith("<body><h1>x</h1>")
    assert "p { margin: 0 }</style>" in page


def test_a_wide_table_scrolls_by_itself():
    assert table("<th>a", ["<tr><td>1"]) == "<div class=wide><table><tr><th>a<tr><td>1</table></div>"
