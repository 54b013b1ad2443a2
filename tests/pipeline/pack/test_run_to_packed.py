"""From text to packed rows through the engine itself."""

import json
from pathlib import Path

import pytest

from pipeline import recipe
from pipeline.run import run
from tests.pipeline.pack.token_rows import pieces_by_document, read_packed, shard_bytes
from tests.pipeline.tokens.real_text import documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"text": text, "from": source} for source, text in documents(limit_per_source=15)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path, len(rows)


def packed(corpus, out, **settings):
    steps = [
        {"crawl.corpus": {"path": str(corpus), "source_field": "from"}},
        {"tokens.train_bpe": {"vocab_size": 1500}},
        {"tokens.encode": {"verify_share": 0.1}},
        {"pack.best_fit": {"seq_len": 256, "shard_tokens": 50_000, "validation_share": 0.05}},
    ]
    return run(recipe.from_mapping({"steps": steps, **settings}), str(out))


def test_a_recipe_ends_in_packed_rows_that_decode_to_the_corpus(corpus, tmp_path):
    from transformers import AutoTokenizer

    path, n = corpus
    packed(path, tmp_path, workers=0)
    dataset, rows = read_packed(tmp_path / "packed")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "packed" / dataset["tokenizer"])
    pieces = pieces_by_document(rows) | pieces_by_document(read_packed(tmp_path / "packed", "validation")[1])
    assert len(pieces) == n
    whole = {tokenizer.decode(found[0][:-1]) for found in pieces.values() if len(found) == 1}
    texts = {json.loads(line)["text"] for line in path.read_text().splitlines()}
    assert whole <= texts
    assert dataset["sources"].keys() == {source for source, _ in documents(limit_per_source=1)}


def test_two_ray_workers_and_other_batches_give_the_same_packed_bytes(corpus, tmp_path, ray_cluster):
    path, _ = corpus
    packed(path, tmp_path / "one", workers=0)
    packed(path, tmp_path / "two", workers=2, batch_documents=7)
    assert shard_bytes(tmp_path / "one" / "packed") == shard_bytes(tmp_path / "two" / "packed")


def test_conversations_end_in_rows_with_masked_targets(corpus, tmp_path):
    path, _ = corpus
    packed(path, tmp_path / "pretrain", workers=0)
    talks = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(40)]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, talks)) + "\n")
    tokenizer = str(tmp_path / "pretrain" / "tokenizer")
    names = {path.name for path in Path(tokenizer).iterdir()}
    for weights in ("model.safetensors", "model.safetensors.index.json", "generation_config.json"):
        Path(tokenizer, weights).write_text("{}")  # a whole model's folder is named; its weights stay there
    steps = [
        {"crawl.corpus": {"path": str(tmp_path / "sft.jsonl"), "text_field": "."}},
        {"tokens.chat": {"tokenizer": tokenizer}},
        {"pack.best_fit": {"seq_len": 256}},
    ]
    run(recipe.from_mapping({"steps": steps, "workers": 0}), str(tmp_path / "sft"))
    dataset, rows = read_packed(tmp_path / "sft" / "packed")
    assert dataset["documents"] == 40
    for copied in ("tokenizer", "packed/tokenizer"):
        assert {path.name for path in (tmp_path / "sft" / copied).iterdir()} == names
    assert all(0 < sum(row["loss_mask"]) < len(row["input_ids"]) for row in rows)
