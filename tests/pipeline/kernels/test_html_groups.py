"""Groups of blocks that look alike, against plain dictionaries."""

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.html_bytes import S_CHARS, S_LINK, S_STOPS, S_WORDS
from pipeline.kernels.html_groups import GROUP_COLUMNS, OPINION_COLUMNS, group_features, groups, opinions
from pipeline.kernels.html_scan import scan

PIECES = st.sampled_from(
    ("<div class=a>", "<div class=b>", "</div>", "<p>", "</p>", "<ul>", "<li>", "</ul>", "<a href=x>link</a>", "One. ",
     "Two words. ", "three", "<br>", "<td class=c>")
)  # fmt: skip
HTML = st.lists(PIECES, max_size=40).map("".join)


def path_of(page, e, facts):
    path = []
    while e >= 0:
        path.append(facts(e))
        e = int(page.parent[e])
    return tuple(path)


def plain_groups(page):
    """For each key, the blocks by what they have in common."""
    found = [defaultdict(list) for _ in range(5)]
    for b, e in enumerate(page.block_element.tolist()):
        up = max(int(page.parent[e]), 0)
        keys = (
            (int(page.shape[e]), int(page.shape[up])),
            path_of(page, e, lambda i: int(page.tag[i])),
            path_of(page, e, lambda i: int(page.shape[i])),
            path_of(page, up, lambda i: int(page.shape[i])),
            int(page.digest[b]),
        )
        for k, key in enumerate(keys):
            found[k][key].append(b)
    return found


def of(page):
    return groups(page.tag, page.parent, page.shape, page.block_element, page.digest)


@given(HTML)
@settings(deadline=None, max_examples=150)
def test_blocks_are_together_exactly_when_their_keys_are_equal(html):
    page = scan(html.encode())
    for numbers, plain in zip(of(page), plain_groups(page), strict=True):
        together = defaultdict(list)
        for b, number in enumerate(numbers.tolist()):
            together[number].append(b)
        assert sorted(together.values()) == sorted(plain.values())


@given(HTML)
@settings(deadline=None, max_examples=100)
def test_columns_of_groups_are_sums_over_their_blocks(html):
    page = scan(html.encode())
    stats = page.stats.astype(float)
    columns = group_features(of(page), page.stats)
    assert columns.shape == (len(stats), GROUP_COLUMNS)
    *shapes, texts = plain_groups(page)
    for blocks in texts.values():
        assert columns[blocks, 0].tolist() == list(range(len(blocks)))
    for k, plain in enumerate(shapes):
        for blocks in plain.values():
            chars, link, stops, words = (stats[blocks, s].sum() for s in (S_CHARS, S_LINK, S_STOPS, S_WORDS))
            expected = [
                np.log(len(blocks)),
                np.log(chars / len(blocks) + 1),
                link / max(chars, 1),
                stops / max(words, 1),
                chars / max(stats[:, S_CHARS].sum(), 1e-6),
            ]
            for b in blocks:
                np.testing.assert_allclose(columns[b, 1 + 5 * k : 6 + 5 * k], expected, rtol=1e-4, atol=1e-5)


@given(HTML, st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_opinions_are_those_of_the_others_of_a_group_and_of_the_best_container(html, seed):
    page = scan(html.encode())
    p = np.random.default_rng(seed).random(len(page.stats)).astype(np.float32)
    columns = opinions(of(page), page.parent, page.block_element, page.stats, p)
    assert columns.shape == (len(p), OPINION_COLUMNS)
    if not len(p):
        return
    weight = page.stats[:, S_CHARS].astype(float) + 1
    *shapes, texts = plain_groups(page)
    for k, plain in enumerate(shapes):
        for blocks in plain.values():
            for b in blocks:
                others = [o for o in blocks if o != b]
                mean = np.average(p[others], weights=weight[others]) if others else -1
                np.testing.assert_allclose(columns[b, k], mean, rtol=1e-4, atol=1e-5)
    for blocks in shapes[0].values():
        assert np.all(columns[blocks, 4] == p[blocks].max())
    for blocks in texts.values():
        assert np.all(columns[blocks, 5] == p[blocks[0]])
    below = [
        {b for b, e in enumerate(page.block_element) if page_holds(page, top, int(e))} for top in range(len(page.tag))
    ]
    total = (weight * p).sum()
    f1 = [2 * sum(weight[b] * p[b] for b in held) / (sum(weight[b] for b in held) + total) for held in below]
    np.testing.assert_allclose(columns[:, 7], max(f1), rtol=1e-4)
    inside = {b for b in range(len(p)) if columns[b, 6] == 1}
    assert inside in below
    np.testing.assert_allclose(f1[below.index(inside)], max(f1), rtol=1e-4)


def page_holds(page, top, e):
    while e >= 0:
        if e == top:
            return True
        e = int(page.parent[e])
    return False
