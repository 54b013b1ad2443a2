import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError, RecipeError
from pipeline.pack.mix import Mix
from pipeline.schema import TOKENS, document_id
from tests.pipeline.pack.local_stage import LocalStage, run_corpus
from tests.pipeline.pack.token_rows import lognormal_lengths


def corpus(counts, **columns):
    """TOKENS rows without ids (mixing looks at lengths only): {source: number of documents}."""
    sources = [source for source, n in counts.items() for _ in range(n)]
    lengths = lognormal_lengths(len(sources), seed=len(sources), mean=6.4, spread=0.9)
    rows = {
        "doc_id": [document_id(source, i, "", b"") for i, source in enumerate(sources)],
        "source": sources,
        "language": [None] * len(sources),
        "n_tokens": lengths,
        "input_ids": [b""] * len(sources),
    }
    table = pa.table(rows, schema=TOKENS)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def mixed(folder, table, *, partitions=2, batch_documents=1000, seed=0, **settings):
    step = Mix(**settings)
    step.check()
    stage = LocalStage(folder, step, table, partitions=partitions, batch_documents=batch_documents, seed=seed)
    kept, gone, decided = run_corpus(stage)
    assert kept.num_rows + len(gone) == table.num_rows
    return kept, gone, decided["report"], stage


def tokens_by_source(rows):
    copies, lengths = rows.column("copies").to_numpy(), rows.column("n_tokens").to_numpy().astype(np.int64)
    sources = np.array(rows.column("source").to_pylist())
    return {s: int((copies * lengths)[sources == s].sum()) for s in np.unique(sources).tolist()}


def test_shares_are_exact_to_a_thousandth_on_a_hundred_million_tokens(tmp_path):
    table = corpus({"web": 90_000, "books": 20_000, "code": 40_000})
    weights = {"web": 0.5, "books": 0.3, "code": 0.2}
    found = tokens_by_source(mixed(tmp_path, table, method="weights", weights=weights, budget=100_000_000)[0])
    total = sum(found.values())
    assert total == pytest.approx(1e8, rel=1e-4)
    for source, share in weights.items():
        assert abs(found[source] / total - share) < 1e-3


@pytest.mark.parametrize("budget", [3_000_000, 40_000_000])
def test_few_and_many_epochs_are_exact_too(tmp_path, budget):
    table = corpus({"a": 9_000, "b": 1_000})
    kept, _, report, _ = mixed(tmp_path, table, method="temperature", temperature=2.0, budget=budget)
    found = tokens_by_source(kept)
    for source, entry in report["sources"].items():
        assert found[source] == pytest.approx(entry["gives"], rel=1e-3)
        assert entry["epochs"] == pytest.approx(entry["gives"] / entry["tokens"], rel=1e-6)
    copies = kept.filter(pa.compute.equal(kept.column("source"), "b")).column("copies").to_numpy()
    assert copies.max() - copies.min() <= 1


def test_the_choice_does_not_depend_on_partitions_batches_or_order(tmp_path):
    table = corpus({"a": 900, "b": 500})
    settings = {"method": "weights", "weights": {"a": 1, "b": 3}, "budget": 700_000}
    expected = {row["doc_id"]: row["copies"] for row in mixed(tmp_path / "1", table, **settings)[0].to_pylist()}
    other = table.take(np.random.default_rng(0).permutation(table.num_rows))
    kept = mixed(tmp_path / "2", other, partitions=5, batch_documents=13, **settings)[0]
    assert {row["doc_id"]: row["copies"] for row in kept.to_pylist()} == expected
    reseeded = mixed(tmp_path / "3", table, seed=1, **settings)[0]
    assert {row["doc_id"]: row["copies"] for row in reseeded.to_pylist()} != expected


def test_without_a_budget_proportional_takes_everything_once(tmp_path):
    table = corpus({"a": 300, "b": 100})
    kept, gone, report, _ = mixed(tmp_path, table)
    assert not gone
    assert set(kept.column("copies").to_pylist()) == {1}
    assert report["tokens"] == table.column("n_tokens").to_numpy().sum()


def test_without_a_budget_weights_repeat_no_source(tmp_path):
    table = corpus({"a": 3000, "b": 1000})
    kept, gone, report, _ = mixed(tmp_path, table, method="weights", weights={"a": 1, "b": 1})
    assert max(entry["epochs"] for entry in report["sources"].values()) == pytest.approx(1)
    assert set(gone.values()) == {"over_budget"}
    assert set(kept.column("copies").to_pylist()) == {1}


def test_many_epochs_are_warned_of_and_few_are_not(tmp_path):
    table = corpus({"a": 1000, "b": 20})
    settings = {"method": "weights", "weights": {"a": 0.5, "b": 0.5}}
    size = int(table.column("n_tokens").to_numpy().sum())
    _, _, report, stage = mixed(tmp_path / "many", table, budget=size, **settings)
    assert report["sources"]["b"]["epochs"] > 4
    assert len(stage.lines) == len(report["warnings"]) == 1
    assert "b is seen" in stage.lines[0]
    assert not mixed(tmp_path / "few", table, budget=size // 100, **settings)[2]["warnings"]


def test_unimax_caps_the_epochs_of_small_sources(tmp_path):
    table = corpus({"large": 5000, "small": 50})
    size = int(table.column("n_tokens").to_numpy().sum())
    _, _, report, _ = mixed(tmp_path, table, method="unimax", budget=size // 2, max_epochs=3)
    assert report["sources"]["small"]["epochs"] == pytest.approx(3, rel=1e-3)
    assert report["tokens"] == pytest.approx(size // 2, rel=1e-3)


def test_doremi_weights_come_from_the_file(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text('{"a": 0.5, "b": 0.0}\n' * 3)
    _, _, report, _ = mixed(tmp_path / "m", corpus({"a": 800, "b": 800}), method="doremi", excess_losses=str(path))
    assert report["sources"]["a"]["share"] > 0.6
    path.write_text("not json\n")
    with pytest.raises(DataError, match="one JSON object"):
        mixed(tmp_path / "n", corpus({"a": 8, "b": 8}), method="doremi", excess_losses=str(path))


def test_sources_without_weight_leave_with_their_reason(tmp_path):
    kept, gone, _, _ = mixed(tmp_path, corpus({"a": 50, "spam": 30}), method="weights", weights={"a": 1})
    assert set(kept.column("source").to_pylist()) == {"a"}
    assert list(gone.values()) == ["not_in_mixture"] * 30


def test_quality_bins_repeat_the_good_and_drop_the_bad(tmp_path):
    scores = np.random.default_rng(0).random(3000)
    quality = {"column": "score", "edges": [0.4, 0.8], "factors": [0, 1, 3]}
    table = corpus({"web": 3000}, score=scores)
    kept, gone, _, _ = mixed(tmp_path, table, quality=quality)
    assert set(gone.values()) == {"low_quality_bin"}
    assert len(gone) == (scores < 0.4).sum()
    copies, kept_scores = kept.column("copies").to_numpy(), kept.column("score").to_numpy()
    assert set(copies[kept_scores >= 0.8]) == {3}
    assert set(copies[kept_scores < 0.8]) == {1}


def test_rehydration_repeats_by_cluster_size(tmp_path):
    sizes = [1, 2, 3, 4, 5, 99, 100, 999, 1000, 5000]
    kept = mixed(tmp_path, corpus({"web": 10}, cluster_size=sizes), rehydrate={})[0]
    found = dict(zip(kept.column("cluster_size").to_pylist(), kept.column("copies").to_pylist(), strict=True))
    assert found == {1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 99: 5, 100: 8, 999: 8, 1000: 1, 5000: 1}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"method": "weights"}, "weights"),
        ({"weights": {"a": 1}}, "weights"),
        ({"method": "unimax"}, "budget"),
        ({"method": "doremi"}, "excess_losses"),
        ({"quality": {"column": "s", "edges": [1], "factors": [1]}}, "2 bins"),
        ({"quality": {"column": "s", "edges": [2, 1], "factors": [1, 1, 1]}}, "ascend"),
        ({"rehydrate": {"copies": {2: 2}}}, "cluster size 1"),
    ],
)
def test_settings_that_contradict_are_refused(settings, why):
    with pytest.raises(RecipeError, match=why):
        Mix(**settings).check()


def test_a_column_that_was_not_carried_along_is_named(tmp_path):
    with pytest.raises(Exception, match="cluster_size"):
        mixed(tmp_path, corpus({"web": 10}), rehydrate={})
