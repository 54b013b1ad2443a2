import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, RecipeError, RunError
from pipeline.pack.best_fit import BestFit, best_fit
from pipeline.schema import packed_schema
from tests.pipeline.pack.local_stage import LocalStage
from tests.pipeline.pack.token_rows import (
    documents_of,
    lognormal_lengths,
    pieces_by_document,
    read_packed,
    shard_bytes,
    token_table,
    tokenizer_folder,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


def pack(folder, tokenizer, table, *, partitions=2, batch_documents=100, seed=0, **settings):
    step = BestFit(**{"seq_len": 128, "shard_tokens": 20_000, **settings})
    stage = LocalStage(
        folder, step, table, partitions=partitions, batch_documents=batch_documents, seed=seed, tokenizer=tokenizer
    )
    return step.decide(stage)


@given(st.lists(st.integers(0, 700), min_size=1, max_size=60))
@settings(max_examples=25, deadline=None)
def test_every_document_comes_back_from_the_fewest_pieces(tokenizer, tmp_path_factory, lengths):
    table = token_table([*lengths, 5])
    decided = pack(tmp_path_factory.mktemp("pack"), tokenizer, table, shard_tokens=2_000)
    dataset, rows = read_packed(decided["path"])
    kept = {doc_id: ids for doc_id, ids in documents_of(table).items() if len(ids) >= 2}
    pieces = pieces_by_document(rows)
    assert pieces.keys() == kept.keys()
    for doc_id, ids in kept.items():
        found = pieces[doc_id]
        assert len(found) == -(-len(ids) // 128)
        whole = [ids[at : at + 128] for at in range(0, len(ids), 128)]
        assert sorted(found) == sorted(whole)
    assert dataset["tokens"] == sum(len(ids) for ids in kept.values())
    assert decided["documents"] + sum(decided["removed"].values()) == table.num_rows


def test_the_packed_files_are_the_same_bytes_for_every_partition_batch_and_order(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(1500))
    expected = shard_bytes(pack(tmp_path / "a", tokenizer, table, validation_share=0.1)["path"])
    assert len([name for name in expected if name.startswith("train-")]) > 5
    rng = np.random.default_rng(1)
    mixed_up = table.take(rng.permutation(table.num_rows))
    for name, rows, partitions, batch in (("b", table, 7, 1000), ("c", mixed_up, 3, 13), ("d", mixed_up, 1, 1)):
        decided = pack(
            tmp_path / name, tokenizer, rows, partitions=partitions, batch_documents=batch, validation_share=0.1
        )
        assert shard_bytes(decided["path"]) == expected


def test_another_seed_gives_other_rows_of_the_same_tokens(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(800))
    first = read_packed(pack(tmp_path / "a", tokenizer, table, seed=1)["path"])
    second = read_packed(pack(tmp_path / "b", tokenizer, table, seed=2)["path"])
    assert first[1] != second[1]
    assert first[0]["tokens"] == second[0]["tokens"]
    assert pieces_by_document(first[1]).keys() == pieces_by_document(second[1]).keys()


def test_rows_are_full_to_three_nines():
    lengths = lognormal_lengths(100_000, mean=6.3, spread=1.0)
    rows = best_fit(lengths, 2048)
    assert lengths.sum() / (rows.rows * 2048) >= 0.999


def test_validation_documents_are_held_out_by_hash_and_stay_there_when_the_corpus_grows(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(2000))
    held = {}
    for name, rows in (("half", table.slice(0, 1000)), ("all", table)):
        decided = pack(tmp_path / name, tokenizer, rows, validation_share=0.2)
        train = pieces_by_document(read_packed(decided["path"])[1])
        held[name] = set(pieces_by_document(read_packed(decided["path"], "validation")[1]))
        assert not held[name] & set(train)
        assert len(held[name]) + len(train) == rows.num_rows
    assert held["half"] <= held["all"]
    assert 300 < len(held["all"]) < 500


def test_dataset_json_adds_up(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(900))
    decided = pack(tmp_path, tokenizer, table, validation_share=0.1)
    dataset, rows = read_packed(decided["path"])
    assert dataset["rows"] == len(rows) == sum(shard["rows"] for shard in dataset["shards"])
    assert dataset["tokens"] == sum(map(len, (row["input_ids"] for row in rows)))
    assert dataset["documents"] == len(pieces_by_document(rows))
    assert sum(entry["share"] for entry in dataset["sources"].values()) == pytest.approx(1)
    assert sum(entry["documents"] for entry in dataset["sources"].values()) == dataset["documents"]
    assert dataset["documents"] + dataset["validation"]["documents"] == decided["documents"] == 900
    assert dataset["vocab_size"] == 1000
    assert (tmp_path / "packed" / dataset["tokenizer"] / "tokenizer.json").exists()


def test_documents_too_short_are_in_the_ledger(tokenizer, tmp_path):
    table = token_table([1, 50, 3, 1, 60])
    decided = pack(tmp_path, tokenizer, table, min_tokens=4)
    assert decided["removed"] == {"too_few_tokens": 3}
    ledger = pa.concat_tables([pq.read_table(path) for path in decided["ledger"]])
    ids = table.column("doc_id").to_pylist()
    assert sorted(ledger.column("doc_id").to_pylist()) == sorted([ids[0], ids[2], ids[3]])
    assert set(ledger.column("reason").to_pylist()) == {"too_few_tokens"}
    assert sorted(ledger.column("score").to_pylist()) == [1, 1, 3]


def test_documents_longer_than_asked_are_in_the_ledger_and_none_is_cut(tokenizer, tmp_path):
    decided = pack(tmp_path, tokenizer, token_table([100, 128, 129, 500]), max_tokens=128)
    assert decided["removed"] == {"too_many_tokens": 2}
    assert decided["report"]["cut_documents"] == 0
    ledger = pa.concat_tables([pq.read_table(path) for path in decided["ledger"]])
    assert sorted(ledger.column("score").to_pylist()) == [129, 500]
    assert set(ledger.column("threshold").to_pylist()) == {128}


def test_copies_repeat_a_document_in_training_only(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(400))
    table = table.append_column("copies", pa.array([i % 4 for i in range(400)], pa.int32()))
    table = table.filter(pa.compute.greater(table.column("copies"), 0))
    decided = pack(tmp_path, tokenizer, table, validation_share=0.2, seq_len=100_000, shard_tokens=10**6)
    wanted = dict(zip(table.column("doc_id").to_pylist(), table.column("copies").to_pylist(), strict=True))
    dataset, rows = read_packed(decided["path"])
    for doc_id, found in pieces_by_document(rows).items():
        assert len(found) == wanted[doc_id]
    assert all(len(found) == 1 for found in pieces_by_document(read_packed(decided["path"], "validation")[1]).values())
    assert dataset["documents"] + dataset["validation"]["documents"] == decided["documents"] == table.num_rows


@pytest.mark.parametrize("vocab_size", [1000, 70_000])
def test_packed_rows_open_with_plain_pandas(tmp_path, vocab_size):
    import pandas

    tokenizer = tokenizer_folder(tmp_path / "tokenizer", vocab_size)
    table = token_table(lognormal_lengths(50), vocab_size=vocab_size)
    decided = pack(tmp_path / "pack", tokenizer, table, shard_tokens=10**6)
    frame = pandas.read_parquet(f"{decided['path']}/train-00000-of-00001.parquet")
    assert all(len(ids) == 128 for ids in frame["input_ids"])
    assert frame["doc_lengths"].map(sum).sum() == table.column("n_tokens").to_numpy().sum()
    schema = pq.read_schema(f"{decided['path']}/train-00000-of-00001.parquet")
    assert schema.equals(packed_schema(128, vocab_size, groups=["source", "language"]))


def test_each_piece_carries_its_documents_values_and_other_columns_when_asked(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(300))
    table = table.append_column("bin", pa.array([i % 5 for i in range(300)]))
    decided = pack(tmp_path / "a", tokenizer, table, groups=["language", "bin"])
    told = {row["doc_id"]: row for row in table.to_pylist()}
    dataset, rows = read_packed(decided["path"])
    assert dataset["groups"] == ["language", "bin"]
    for row in rows:
        assert row["group_language"] == [told[doc_id]["language"] for doc_id in row["doc_ids"]]
        assert row["group_bin"] == [str(told[doc_id]["bin"]) for doc_id in row["doc_ids"]]
        assert "group_source" not in row
    bare = pack(tmp_path / "b", tokenizer, table, groups=[])
    assert rows[0].keys() - read_packed(bare["path"])[1][0].keys() == {"group_language", "group_bin"}


def test_groups_that_the_tokens_lack_or_that_are_no_names_are_refused(tokenizer, tmp_path):
    table = token_table([50, 60]).append_column("score", pa.array([0.5, 0.25]))
    with pytest.raises(DataError, match=r"keep: \[topic\]"):
        pack(tmp_path / "a", tokenizer, table, groups=["language", "topic"])
    with pytest.raises(DataError, match="'score' of double"):
        pack(tmp_path / "b", tokenizer, table, groups=["score"])


def test_loss_masks_lie_under_their_tokens(tokenizer, tmp_path):
    table = token_table(lognormal_lengths(300))
    masks = [bytes(token % 2 for token in ids) for ids in documents_of(table).values()]
    table = table.append_column("loss_mask", pa.array(masks, pa.large_binary()))
    decided = pack(tmp_path, tokenizer, table)
    for row in read_packed(decided["path"])[1]:
        used = len(row["input_ids"])
        assert row["loss_mask"][:used] == [token % 2 for token in row["input_ids"]]
        assert not any(row["loss_mask"][used:])


def test_tokens_of_another_width_are_refused(tmp_path):
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", 70_000)
    with pytest.raises(DataError, match="another tokenizer"):
        pack(tmp_path / "pack", tokenizer, token_table([10, 20]))


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", 300)
    with pytest.raises(DataError, match="encoded with another"):
        pack(tmp_path / "pack", tokenizer, token_table([100, 200], vocab_size=1000))


def test_a_corpus_with_nothing_to_pack_says_so(tokenizer, tmp_path):
    with pytest.raises(RunError, match="no document to pack"):
        pack(tmp_path, tokenizer, token_table([1, 1]))


def test_a_validation_share_that_holds_nobody_says_so(tokenizer, tmp_path):
    with pytest.raises(RunError, match="validation_share"):
        pack(tmp_path, tokenizer, token_table([10, 20]), validation_share=1e-6)


def test_shards_too_large_for_the_memory_are_refused(tokenizer, tmp_path):
    step = BestFit(seq_len=128, shard_tokens=1 << 26)
    stage = LocalStage(tmp_path, step, token_table(lognormal_lengths(100)), tokenizer=tokenizer)
    stage.memory_bytes = 1000
    with pytest.raises(RecipeError, match="shard_tokens"):
        step.decide(stage)
