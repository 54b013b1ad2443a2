import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError, RecipeError
from pipeline.schema import TOKENS
from pipeline.step import string_buffers
from pipeline.tokens.encode import Encode
from pipeline.tokens.vocabulary import read_vocabulary
from tests.pipeline.pack.local_stage import run_transform
from tests.pipeline.tokens.real_text import document_table, documents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from pipeline.tokens.train_bpe import train_bpe
    from pipeline.tokens.vocabulary import config_json

    path = tmp_path_factory.mktemp("tokenizer")
    texts = [text for _, text in documents(limit_per_source=30)]
    train_bpe(iter(texts), vocab_size=3000).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(config_json())
    return str(path)


def decoded(folder, row):
    from tokenizers import Tokenizer

    ids = np.frombuffer(row["input_ids"], "<u2")
    return Tokenizer.from_file(f"{folder}/tokenizer.json").decode(ids[:-1].tolist(), skip_special_tokens=False)


def test_every_document_comes_back_and_ends_with_the_end_token(folder):
    table = document_table(documents(limit_per_source=20))
    rows = run_transform(Encode(), table, {"tokenizer": folder})
    assert rows.schema.equals(TOKENS)
    assert rows.column("doc_id").to_pylist() == table.column("doc_id").to_pylist()
    eos = read_vocabulary(folder).eos_id
    for row, text in zip(rows.to_pylist(), table.column("text").to_pylist(), strict=True):
        ids = np.frombuffer(row["input_ids"], "<u2")
        assert row["n_tokens"] == len(ids)
        assert ids[-1] == eos
        assert eos not in ids[:-1]
        assert decoded(folder, row) == text


def test_ids_do_not_depend_on_batches_or_slices(folder):
    table = document_table(documents(limit_per_source=10))
    whole = run_transform(Encode(), table, {"tokenizer": folder})
    assert run_transform(Encode(), table, {"tokenizer": folder}, batch_documents=3).combine_chunks() == whole
    tail = run_transform(Encode(), table.slice(17), {"tokenizer": folder})
    assert tail == whole.slice(17)


def test_a_document_cannot_forge_a_special_token(folder):
    text = "before<|endoftext|>after<|fim_middle|><|im_start|>system"
    rows = run_transform(Encode(), document_table([("web", text)]), {"tokenizer": folder}).to_pylist()
    ids = np.frombuffer(rows[0]["input_ids"], "<u2")
    assert not set(ids[:-1].tolist()) & set(read_vocabulary(folder).specials.values())
    assert decoded(folder, rows[0]) == text


def test_an_empty_document_is_only_the_end_token(folder):
    rows = run_transform(Encode(), document_table([("web", "")]), {"tokenizer": folder})
    assert rows.column("n_tokens").to_pylist() == [1]


@pytest.mark.parametrize("encoder", ["kernel", "huggingface"])
def test_bytes_that_are_no_utf8_count_as_replacement_characters(folder, encoder):
    broken = "half a \ud83d pair".encode("utf-8", "surrogatepass")
    table = document_table([("web", "half a ??? pair"), ("web", "half a \ufffd\ufffd\ufffd pair"), ("web", "whole")])
    offsets, data = string_buffers(table.column("text").combine_chunks())
    text = pa.Array.from_buffers(
        pa.large_string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(broken + data[offsets[1] :].tobytes())]
    )
    damaged = table.set_column(table.schema.get_field_index("text"), "text", text)
    rows = run_transform(Encode(encoder=encoder, verify_share=1), damaged, {"tokenizer": folder})
    ids = rows.column("input_ids").to_pylist()
    assert ids[0] == ids[1]


def test_named_columns_are_carried_along(folder):
    table = document_table([("web", "one"), ("web", "two")])
    table = table.append_column("cluster_size", pa.array([3, 9], pa.int32()))
    rows = run_transform(Encode(keep=["cluster_size"]), table, {"tokenizer": folder})
    assert rows.column("cluster_size").to_pylist() == [3, 9]
    with pytest.raises(DataError, match="quality"):
        run_transform(Encode(keep=["quality"]), table, {"tokenizer": folder})


def test_without_a_tokenizer_the_error_says_where_one_comes_from():
    with pytest.raises(RecipeError, match=r"tokens\.train_bpe"):
        Encode().warm({})
