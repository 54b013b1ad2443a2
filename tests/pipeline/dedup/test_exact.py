"""Exact deduplication: equal texts, and nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import RecipeError
from pipeline.dedup.exact import Exact


def test_of_equal_texts_the_newest_stays_and_the_others_name_it(dedup, docs):
    table = docs(["a b", "x", "a b", "a b", "a  b"], date=[5, 1, 9, 7, 1])
    result = dedup(Exact(), table)
    assert result["kept"].column("text").to_pylist() == ["x", "a b", "a  b"]
    assert result["kept"].column("cluster_size").to_pylist() == [1, 3, 1]
    newest = (2).to_bytes(16, "big")
    assert {match for _, match, _ in result["removed"].values()} == {newest}
    assert {reason for reason, _, _ in result["removed"].values()} == {"exact_duplicate"}


def test_normalised_texts_are_equal_when_their_words_are(dedup, docs):
    texts = [
        "Hello, World!",
        "hello world",
        "HELLO   WORLD…",
        "hello worlds",
        "天 地",
        "天地。",
        "!!!",
        "???",
        "No 1",
        "No 2",
    ]
    kept = dedup(Exact(text="normalised"), docs(texts))["kept"].column("text").to_pylist()
    assert kept == ["HELLO   WORLD…", "hello worlds", "天地。", "!!!", "???", "No 1", "No 2"]


def test_each_keep_policy_keeps_what_it_says(dedup, docs):
    table = docs(["a", "a", "a"], date=[1, 3, 2], source=["x", "y", "z"], score=[0.1, -1.0, 0.7])

    def stays(**settings):
        return dedup(Exact(**settings), table)["kept"].column("source").to_pylist()

    assert stays(keep=["newest"]) == ["y"]
    assert stays(keep=["oldest"]) == ["x"]
    assert stays(keep=["quality"], quality="score") == ["z"]
    assert stays(keep=["source"], sources=["z", "x"]) == ["z"]
    assert stays(keep=[]) == ["x"]


def test_a_missing_date_or_score_never_wins(dedup, docs):
    table = docs(["a", "a"], date=[None, 3], source=["x", "y"], score=[float("nan"), -5.0])
    for step in (Exact(keep=["newest"]), Exact(keep=["oldest"]), Exact(keep=["quality"], quality="score")):
        assert dedup(step, table)["kept"].column("source").to_pylist() == ["y"]


def test_policies_without_what_they_need_are_refused():
    with pytest.raises(RecipeError, match="quality"):
        Exact(keep=["quality"]).check()
    with pytest.raises(RecipeError, match="sources"):
        Exact(keep=["source"]).check()
    with pytest.raises(RecipeError, match="twice"):
        Exact(keep=["newest", "newest"]).check()


def test_documents_of_different_scope_do_not_meet(dedup, docs):
    table = docs(["a", "a", "a"], source=["x", "y", "x"])
    assert dedup(Exact(scope="source"), table)["kept"].num_rows == 2
    assert dedup(Exact(), table)["kept"].num_rows == 1


def test_a_cluster_size_from_an_earlier_step_is_added_up(dedup, docs):
    table = docs(["a", "a", "b"], cluster_size=[4, 2, 7])
    assert sorted(dedup(Exact(), table)["kept"].column("cluster_size").to_pylist()) == [6, 7]


def test_a_group_larger_than_memory_is_decided_as_a_whole(dedup, docs):
    texts = ["same"] * 30_000 + ["other", "other", "one"]
    dates = random.Random(1).sample(range(10**6), len(texts))
    small = dedup(Exact(), docs(texts, date=dates), memory=1 << 19, workers=1)
    large = dedup(Exact(), docs(texts, date=dates), memory=1 << 30)
    assert small["kept"].sort_by("date").equals(large["kept"].sort_by("date"))
    assert small["removed"] == large["removed"]
    assert sorted(small["kept"].column("cluster_size").to_pylist()) == [1, 2, 30_000]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(alphabet="ab é", max_size=3), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_partitions_batches_and_order_change_nothing(dedup, docs, texts, partitions, batch, chance):
    table = docs(texts, date=[len(t) % 3 for t in texts])
    first = dedup(Exact(), table)
    order = list(range(len(texts)))
    chance.shuffle(order)
    second = dedup(Exact(), table.take(order), partitions=partitions, batch=batch, workers=partitions)
    assert first["kept"].sort_by("doc_id").equals(second["kept"].sort_by("doc_id"))
    assert first["removed"] == second["removed"]
    assert set(first["kept"].column("text").to_pylist()) == set(texts)
    assert first["kept"].num_rows == len(set(texts))


def test_a_source_that_loses_too_much_raises_the_alarm(dedup, docs, caplog):
    table = docs(["copy"] * 5 + ["another"], source=["copies"] * 5 + ["fine"])
    for memory in (1 << 30, 1 << 7):
        decided = dedup(Exact(alarm_share=0.5), table, memory=memory)["decided"]
        assert decided["sources"] == {
            "copies": {"documents": 5, "removed": 4},
            "fine": {"documents": 1, "removed": 0},
        }
        assert "source 'copies' lost 4 of 5" in decided["alarms"][0]
    assert "dedup.exact: source 'copies' lost 4 of 5" in caplog.text
    assert dedup(Exact(alarm_share=0.9), table)["decided"]["alarms"] == []
