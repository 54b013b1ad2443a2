"""The four row types, as Arrow schemas: RECORD → DOCUMENT → TOKENS → PACKED.

This is the only module of the pipeline that the trainers import: packed Parquet on disk, with `dataset.json`
beside it, is the whole contract between the two sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

import pyarrow as pa

DOC_ID = pa.binary(16)


class Row(StrEnum):
    """The row type that a step takes and gives."""

    NOTHING = "nothing"
    RECORD = "RECORD"
    DOCUMENT = "DOCUMENT"
    TOKENS = "TOKENS"
    PACKED = "PACKED"


RECORD = pa.schema(
    [
        pa.field("doc_id", DOC_ID, nullable=False),  # from file, record, URL and content: see document_id()
        pa.field("source", pa.string(), nullable=False),  # the corpus that the row counts for in mixing
        pa.field("url", pa.string()),
        pa.field("date", pa.timestamp("s", tz="UTC")),  # when it was captured
        pa.field("content_type", pa.string()),  # media type as the server gave it, parameters included
        pa.field("payload", pa.large_binary()),  # the body, transfer and content encoding undone
    ]
)
"""One captured resource, as bytes."""

DOCUMENT = pa.schema(
    [
        pa.field("doc_id", DOC_ID, nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("date", pa.timestamp("s", tz="UTC")),
        pa.field("title", pa.string()),
        pa.field("language", pa.string()),  # ISO 639-1 where there is one, else 639-3
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
"""One document, as text. Steps may append columns (scores, cluster sizes); they never drop these."""

TOKENS = pa.schema(
    [
        pa.field("doc_id", DOC_ID, nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("input_ids", pa.large_binary(), nullable=False),  # little-endian uint16 or uint32: see token_dtype()
    ]
)
"""One document, as token ids: raw bytes, because Parquet stores a list<uint16> as 32-bit integers, 4 times slower."""


def packed_schema(seq_len: int, vocab_size: int, *, loss_mask: bool = False, groups: Sequence[str] = ()) -> pa.Schema:
    """The schema of PACKED rows of `seq_len` tokens.

    `input_ids` is padded behind the used length, which is sum(doc_lengths); `doc_lengths[i]` and `doc_ids[i]`
    belong to the i-th document of the row, and so do `group_NAME[i]`, the document's value in the column NAME of
    `groups` (null where it has none); `loss_mask` (instruction data only) is 1 where a token is a target.
    """
    ids = pa.uint16() if token_dtype(vocab_size) == "<u2" else pa.uint32()
    fields = [
        pa.field("input_ids", pa.list_(pa.field("item", ids, nullable=False), seq_len), nullable=False),
        pa.field("doc_lengths", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        # 16 bytes each, but not fixed-size: pandas cannot open a list of fixed-size binaries
        pa.field("doc_ids", pa.list_(pa.field("item", pa.binary(), nullable=False)), nullable=False),
    ]
    if loss_mask:
        fields.append(pa.field("loss_mask", pa.list_(pa.field("item", pa.uint8(), nullable=False), seq_len)))
    fields += [pa.field(f"group_{name}", pa.list_(pa.string()), nullable=False) for name in groups]
    return pa.schema(fields)


def token_dtype(vocab_size: int) -> str:
    """The NumPy dtype of a token id on disk: '<u2' up to a vocabulary of 65,536, else '<u4'."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def document_id(file: str, record: int, url: str, content: bytes) -> bytes:
    """The 128-bit identity of a document: where it came from and what it is, never which worker read it.

    `file` is the file's name relative to the root that the recipe gives, `record` its number or byte offset there.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (file.encode(), str(record).encode(), url.encode("utf-8", "surrogatepass")):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    digest.update(content)
    return digest.digest()


DATASET_FILE = "dataset.json"
"""Beside the PACKED shards. Keys:

format          "corpusmill.packed/1"
seq_len         tokens per row                       vocab_size   of the tokenizer, reserved tokens included
rows            in all shards                        tokens       used ones, padding left out
documents       distinct doc_ids                     pad_id, eos_id   token ids
tokenizer       path relative to this file of a folder that AutoTokenizer opens
tokenizer_hash  blake2b-128 hex of its tokenizer.json
shards          [{"path": relative, "rows": n, "tokens": n}, …]: global row order is the order of this list
sources         {source: {"documents": n, "tokens": n, "share": of all tokens}}
groups          optional: NAMEs of the columns group_NAME, by whose values held-out loss can be told
fingerprint     of the pipeline run that made it
validation      optional: the same keys `rows`, `tokens`, `shards` for the held-out split
"""

DATASET_FORMAT = "corpusmill.packed/1"
