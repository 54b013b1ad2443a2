"""An index: snapshot after snapshot gives what one run over all of them gives."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pytest

from cluster.errors import RecipeError
from pipeline.dedup.exact import Exact
from pipeline.dedup.lines import Lines
from pipeline.dedup.minhash import Minhash
from pipeline.dedup.url import Url

WORDS = [f"w{i}" for i in range(2000)]


def snapshots(chance: random.Random, count: int, groups: int) -> list[list[str]]:
    """Families of near-copies, and short documents, scattered over snapshots."""
    out: list[list[str]] = [[] for _ in range(count)]
    for _ in range(groups):
        words = chance.choices(WORDS, k=chance.choice([2, 3, 40, 60]))
        for _ in range(chance.randrange(1, 7)):
            copy = list(words)
            for _ in range(chance.randrange(3)):
                copy[chance.randrange(len(copy))] = f"c{chance.randrange(3)}"
            out[chance.randrange(count)].append(" ".join(copy))
    return out


@pytest.mark.parametrize("verify", [0.8, None])
def test_five_snapshots_one_by_one_are_one_run_in_first_come_order(dedup, docs, tmp_path, verify):
    parts = snapshots(random.Random(4), 5, 80)
    texts = [text for part in parts for text in part]
    names = [f"s{i}" for i, part in enumerate(parts) for _ in part]
    table = docs(texts, source=names)
    settings = {"verify": verify, "keep": ["source", "longest"], "sources": [f"s{i}" for i in range(5)]}
    whole = dedup(Minhash(**settings, index=str(tmp_path / "whole"), snapshot="all"), table)

    kept, removed = [], {}
    for number in range(5):
        here = table.filter(pa.compute.equal(table.column("source"), f"s{number}"))
        step = Minhash(**settings, index=str(tmp_path / "index"), snapshot=f"s{number}")
        result = dedup(step, here, partitions=1 + number % 3, memory=1 << (30 if number % 2 else 16))
        kept.append(result["kept"])
        removed |= result["removed"]
    assert removed == whole["removed"]
    one_by_one = pa.concat_tables(kept).column("text").to_pylist()
    assert sorted(one_by_one) == sorted(whole["kept"].column("text").to_pylist())
    first_of = {i.to_bytes(16, "big"): name for i, name in enumerate(names)}
    assert any(first_of[gone] != first_of[match] for gone, (_, match, _) in removed.items())


def test_a_rerun_under_the_same_name_neither_changes_the_answer_nor_the_index(dedup, docs, tmp_path):
    table = docs(["one two three four five six", "x", "one two three four five six"])
    step = Minhash(index=str(tmp_path / "index"), snapshot="a")
    first = dedup(step, table)
    files = sorted((tmp_path / "index" / "snapshots").iterdir())
    before = [f.read_bytes() for f in files]
    assert dedup(step, table)["removed"] == first["removed"]
    assert sorted((tmp_path / "index" / "snapshots").iterdir()) == files
    assert [f.read_bytes() for f in files] == before
    later = dedup(Minhash(index=str(tmp_path / "index"), snapshot="b"), table)
    assert later["kept"].num_rows == 0
    assert step.input_identity() == []
    assert Minhash(index=str(tmp_path / "index"), snapshot="b").input_identity() == ["a"]


@pytest.mark.parametrize("step", [Exact, Url, Minhash, Lines])
def test_a_changed_recipe_replaces_the_newest_snapshot_and_tells_what_it_cannot(dedup, docs, tmp_path, step):
    table = docs(
        [f"some words of document {i} as they are" for i in "abcdefghi"], url=[f"http://a/{i}" for i in range(9)]
    )
    settings = {"keep": "limit", "max_count": 1} if step is Lines else {}

    def made(name: str) -> Any:
        return step(index=str(tmp_path / "index"), snapshot=name, **settings)

    dedup(made("a"), table)
    again = dedup(made("a"), table.slice(0, 4))  # a filter before it was made stricter
    assert again["stage"].said == []
    assert len(dedup(made("b"), table)["removed"]) == 4
    late = dedup(made("a"), table.slice(0, 2))
    assert "snapshot 'a' stays" in late["stage"].said[0]
    assert len(dedup(made("c"), table)["removed"]) == 9


def test_an_index_made_with_other_settings_is_refused(dedup, docs, tmp_path):
    dedup(Minhash(index=str(tmp_path), snapshot="a"), docs(["some words"]))
    with pytest.raises(RecipeError, match=r"snapshot 'a' was made with other settings.*'ngram': \(5, 4\)"):
        Minhash(index=str(tmp_path), snapshot="b", ngram=4).check()
    with pytest.raises(RecipeError, match="need each other"):
        Minhash(index=str(tmp_path)).check()


@pytest.mark.parametrize("step", [Exact, Url])
def test_five_snapshots_of_equal_documents_are_one_run_in_first_come_order(dedup, docs, tmp_path, step):
    chance = random.Random(6)
    texts = [f"text {chance.randrange(120)}" for _ in range(400)]
    names = sorted(f"s{chance.randrange(5)}" for _ in texts)
    urls = [chance.choice([None, f"http://www.e.org/{i % 90}", f"https://e.org/{i % 90}/#top"]) for i in range(400)]
    table = docs(texts, source=names, url=urls, date=[chance.randrange(50) for _ in texts])
    settings = {"keep": ["source", "newest"], "sources": [f"s{i}" for i in range(5)], "size_column": None}
    whole = dedup(step(**settings), table)

    kept, removed = [], {}
    for number in range(5):
        here = table.filter(pa.compute.equal(table.column("source"), f"s{number}"))
        made = step(**settings, index=str(tmp_path / "index"), snapshot=f"s{number}")
        for _ in range(2):  # doing it again gives the same and adds nothing
            result = dedup(made, here, partitions=1 + number % 3, memory=1 << (30 if number % 2 else 9))
        kept.append(result["kept"])
        removed |= result["removed"]
    assert len(list((tmp_path / "index" / "snapshots").iterdir())) == 5
    assert {d: r[:2] for d, r in removed.items()} == {d: r[:2] for d, r in whole["removed"].items()}
    assert pa.concat_tables(kept).sort_by("doc_id") == whole["kept"].sort_by("doc_id")
    source_of = {i.to_bytes(16, "big"): name for i, name in enumerate(names)}
    assert any(source_of[gone] != source_of[match] for gone, (_, match, _) in removed.items())
    with pytest.raises(RecipeError, match="was made with other settings"):
        step(**{**settings, "scope": "source"}, index=str(tmp_path / "index"), snapshot="s5").check()
    with pytest.raises(RecipeError, match="need each other"):
        step(snapshot="alone").check()


@pytest.mark.parametrize("step", [Exact, Url, Minhash, Lines])
def test_an_index_can_be_moved(dedup, docs, tmp_path, step):
    table = docs([f"some words of document {i} as they are" for i in range(9)], url=[f"http://a/{i}" for i in range(9)])
    settings = {"keep": "limit", "max_count": 1} if step is Lines else {}
    dedup(step(index=str(tmp_path / "there"), snapshot="a", **settings), table)
    (tmp_path / "there").rename(tmp_path / "here")
    result = dedup(step(index=str(tmp_path / "here"), snapshot="b", **settings), table)
    assert len(result["removed"]) == 9
