"""TOKENS rows to pack, and a plain reading of what was packed."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import TOKENS, document_id


def tokenizer_folder(path, vocab_size=1000):
    """A folder that counts as a tokenizer of that size: enough for packing, which never encodes."""
    from tokenizers import Tokenizer, models

    from pipeline.tokens.vocabulary import SPECIAL_TOKENS, config_json

    words = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    words |= {f"w{i}": i for i in range(len(words), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(config_json())
    return str(path)


def token_table(lengths, *, vocab_size=1000, seed=0, sources=("web", "books"), languages=("en", "zh", None)):
    """TOKENS rows with random ids; each document ends with token 0, the end token."""
    rng = np.random.default_rng(seed)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    ids = [np.r_[rng.integers(8, vocab_size, n - 1), 0].astype(dtype).tobytes() if n else b"" for n in lengths]
    columns = {
        "doc_id": [document_id("test", i, "", b"") for i in range(len(ids))],
        "source": [sources[i % len(sources)] for i in range(len(ids))],
        "language": [languages[i % len(languages)] for i in range(len(ids))],
        "n_tokens": list(lengths),
        "input_ids": ids,
    }
    return pa.table(columns, schema=TOKENS)


def lognormal_lengths(n, seed=0, mean=5.0, spread=1.2):
    return np.random.default_rng(seed).lognormal(mean, spread, n).astype(int) + 2


def read_packed(folder, split="train"):
    """(dataset.json, list of rows as dicts with `input_ids` cut to the used length)."""
    dataset = json.loads((Path(folder) / "dataset.json").read_text())
    part = dataset if split == "train" else dataset[split]
    rows = []
    for shard in part["shards"]:
        table = pq.read_table(Path(folder) / shard["path"])
        assert table.num_rows == shard["rows"]
        for row in table.to_pylist():
            used = sum(row["doc_lengths"])
            assert all(token == dataset["pad_id"] for token in row["input_ids"][used:])
            row["input_ids"] = row["input_ids"][:used]
            rows.append(row)
    return dataset, rows


def pieces_by_document(rows):
    """{doc_id: [piece, …]} with each piece as a tuple of ids, in order of rows."""
    found = defaultdict(list)
    for row in rows:
        at = 0
        for doc_id, n in zip(row["doc_ids"], row["doc_lengths"], strict=True):
            found[doc_id].append(tuple(row["input_ids"][at : at + n]))
            at += n
    return found


def documents_of(table, vocab_size=1000):
    """{doc_id: tuple of ids}."""
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    return {row["doc_id"]: tuple(np.frombuffer(row["input_ids"], dtype).tolist()) for row in table.to_pylist()}


def shard_bytes(folder):
    """{name: bytes} of all files that packing published."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
