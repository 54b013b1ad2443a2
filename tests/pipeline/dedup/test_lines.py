"""Repeated lines: exactly those above the limit in their bucket go, whatever the partitions and the memory."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import RecipeError
from pipeline.dedup.lines import Lines


def planted(bucket: int) -> list[str]:
    """Three buckets of documents with unique lines, and planted ones of 5, 6, 7 and 1,000 occurrences."""
    chance = random.Random(5)
    texts = [[f"unique {chance.getrandbits(60):x}" for _ in range(3)] for _ in range(3 * bucket)]

    def plant(line: str, where: list[int]) -> None:
        for doc in where:
            texts[doc].insert(chance.randrange(len(texts[doc]) + 1), line)

    for times in (5, 6, 7, 1000):
        plant(f"planted {'abcdefg'[times % 7]}{times}x", chance.sample(range(bucket), min(times, bucket)))
    plant("across the border", list(range(bucket - 6, bucket + 6)))
    plant("across, and seven on one side", list(range(bucket - 1, bucket + 7)))
    plant("twice in a document", [2 * bucket] * 7)
    return ["\n".join(text) for text in texts]


def by_counting(texts: list[str], bucket: int, limit: int, keep: str) -> list[str]:
    """The slow twin: exactly what should be left."""
    out = []
    for start in range(0, len(texts), bucket):
        docs = texts[start : start + bucket]
        count = Counter(x.strip() for text in docs for x in text.split("\n") if x.strip())
        seen: Counter[str] = Counter()
        for text in docs:
            left = []
            for x in text.split("\n"):
                often = count[x.strip()] > limit
                stay = {"none": 0, "first": 1, "limit": limit}[keep]
                if not often or seen[x.strip()] < stay:
                    left.append(x)
                seen[x.strip()] += 1
            out.append("\n".join(left))
    return out


@pytest.mark.parametrize("keep", ["first", "none", "limit"])
@pytest.mark.parametrize("memory", [1 << 16, 1 << 30])
def test_exactly_the_planted_lines_above_the_limit_go(dedup, docs, keep, memory):
    texts = planted(1200)
    step = Lines(bucket_documents=1200, keep=keep, normalise="raw")
    result = dedup(step, docs(texts), partitions=4, memory=memory)
    expected = by_counting(texts, 1200, 6, keep)
    assert result["kept"].column("text").to_pylist() == [text for text in expected if text]
    counted = Counter(x for text in result["kept"].column("text").to_pylist() for x in text.split("\n"))
    rest = {"none": 0, "first": 1, "limit": 6}[keep]
    names = {name: line for line in counted for name in [line.partition(" ")[2]] if line.startswith("planted")}
    assert {name: counted[line] for name, line in names.items() if not name.endswith(("7x", "1000x"))} == {
        "f5x": 5,
        "g6x": 6,
    }
    assert sum(counted[line] for line in counted if line.endswith(("a7x", "g1000x"))) == 2 * rest
    assert counted["across the border"] == 12
    assert counted["across, and seven on one side"] == 1 + rest
    assert counted["twice in a document"] == rest


def test_lines_are_compared_as_ccnet_does(dedup, docs):
    variants = ["Copyright 2019", "copyright 2020", " COPYRIGHT 1999 ", "Copyright “2019”", "Copyright 2019…"]
    texts = [f"own {chr(97 + i)}\n{line}" for i, line in enumerate(variants * 2)]
    result = dedup(Lines(), docs(texts))
    assert result["kept"].column("text").to_pylist()[1:] == [f"own {chr(97 + i)}" for i in range(1, 10)]
    assert dedup(Lines(normalise="raw"), docs(texts))["kept"].column("text").to_pylist() == texts


def test_emptied_and_shortened_documents_get_their_reasons(dedup, docs):
    texts = ["menu\nfooter"] * 8 + ["menu\nfooter\nshort"] + ["menu\n" + "long enough " * 9] + ["ok", ""]
    result = dedup(Lines(min_chars=20), docs(texts))
    reasons = Counter(reason for reason, _, _ in result["removed"].values())
    assert reasons == {"line_dedup_empty": 7, "line_dedup_short": 1}
    kept = result["kept"].column("text").to_pylist()
    assert kept == ["menu\nfooter", "long enough " * 9, "ok", ""]
    assert result["kept"].schema.field("text").nullable is False


def test_blank_and_short_lines_never_count(dedup, docs):
    texts = [f"a\n\n   \n*\n{i:x} tail" for i in range(10)]
    kept = dedup(Lines(min_line_bytes=2, normalise="raw"), docs(texts))["kept"].column("text").to_pylist()
    assert kept == texts


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "", " d "]), max_size=4), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 15),
    st.sampled_from([3, 10, 100]),
    st.sampled_from(["first", "none", "limit"]),
    st.sampled_from([1 << 8, 1 << 30]),
)
def test_any_corpus_partition_batch_and_memory(dedup, docs, lines, partitions, batch, bucket, keep, memory):
    texts = ["\n".join(text) for text in lines]
    step = Lines(bucket_documents=bucket, max_count=2, keep=keep, normalise="raw")
    result = dedup(step, docs(texts), partitions=partitions, batch=batch, workers=partitions, memory=memory)
    expected = by_counting(texts, bucket, 2, keep)
    changed = [e for e, text in zip(expected, texts, strict=True) if e == text or e.strip()]
    assert result["kept"].column("text").to_pylist() == changed


def test_a_sketch_misses_no_frequent_line_and_takes_others_as_often_as_it_says(dedup, docs):
    """60,000 distinct lines in 4 x 2^14 cells, those in which the error is counted among them."""
    chance = random.Random(9)
    often = [f"often {i}" for i in range(300)]
    texts = [[f"{i} {chance.getrandbits(60):x}" for i in range(20)] for _ in range(3000)]
    for line in often:
        for doc in chance.sample(range(3000), 7):
            texts[doc].append(line)
    table = docs(["\n".join(text) for text in texts])
    step = Lines(counting="approximate", keep="none", normalise="raw", sketch_cells=1 << 14)
    found = [dedup(step, table, partitions=n, batch=97 * n) for n in (1, 4)]
    kept = found[0]["kept"].column("text").to_pylist()
    assert found[1]["kept"].column("text").to_pylist() == kept
    assert found[1]["decided"]["wrongly_removed"] == found[0]["decided"]["wrongly_removed"]
    left = Counter(line for text in kept for line in text.split("\n"))
    assert not any(left[line] for line in often)
    stated = found[0]["decided"]["wrongly_removed"]
    assert len(stated) == 6
    assert stated == sorted(stated)
    once = [line for text in texts for line in text if not line.startswith("often")]
    wrong = sum(left[line] == 0 for line in once)
    assert wrong > 20
    assert abs(wrong - stated[0] * len(once)) < 5 * math.sqrt(stated[0] * len(once)) + 10
    # a line comes to what is already in its cells: of lines with two occurrences as many as stated are lost
    twice = [f"twice {i}" for i in range(3000)]
    both = docs(["\n".join(text) for text in texts] + ["\n".join(twice)] * 2)
    again = dedup(step, both)
    left = Counter(line for text in again["kept"].column("text").to_pylist() for line in text.split("\n"))
    wrong, expected = sum(left[line] == 0 for line in twice), again["decided"]["wrongly_removed"][1] * len(twice)
    assert abs(wrong - expected) < 5 * math.sqrt(expected) + 10


def test_buckets_have_sketches_of_their_own(dedup, docs):
    texts = planted(300)
    for memory, partitions in ((1 << 30, 1), (1 << 12, 5)):
        step = Lines(counting="approximate", keep="none", normalise="raw", bucket_documents=300, sketch_cells=1 << 14)
        kept = dedup(step, docs(texts), partitions=partitions, memory=memory)["kept"].column("text").to_pylist()
        assert kept == [text for text in by_counting(texts, 300, 6, "none") if text]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"counting": "approximate"}, "takes keep: none"),
        ({"index": "there", "snapshot": "a"}, "an index takes keep: limit"),
        ({"snapshot": "a"}, "need each other"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, why):
    with pytest.raises(RecipeError, match=why):
        Lines(**settings).check()


@pytest.mark.parametrize("bucket", [70, 10**6])
def test_five_snapshots_of_lines_are_one_run_over_all(dedup, docs, tmp_path, bucket):
    chance = random.Random(4)
    pool = [f"line {i}" for i in range(40)]
    texts = ["\n".join(chance.choices(pool, k=3)) + f"\nown {i:x}" for i in range(200)]
    parts = np.split(np.arange(200), [50, 51, 120, 160])
    settings = {"bucket_documents": bucket, "max_count": 4, "keep": "limit", "normalise": "raw"}
    whole = dedup(Lines(**settings), docs(texts))["kept"].column("text").to_pylist()
    assert whole == by_counting(texts, bucket, 4, "limit")
    left = []
    for number, part in enumerate(parts):
        step = Lines(**settings, index=str(tmp_path / "index"), snapshot=f"s{number}")
        here = docs([texts[i] for i in part])
        for memory in (1 << 30, 1 << 9):  # doing it again gives the same and adds nothing
            result = dedup(step, here, partitions=1 + number % 3, memory=memory)["kept"].column("text").to_pylist()
            assert memory == 1 << 30 or left[-len(part) :] == result
            left += result if memory == 1 << 30 else []
    assert left == whole
    with pytest.raises(RecipeError, match="was made with other settings"):
        Lines(**{**settings, "max_count": 5}, index=str(tmp_path / "index"), snapshot="s9").check()
