"""Turns text into token ids: TOKENS rows, each document ending with the end-of-text token.

Byte-level BPE is encoded by our own kernel (`byte_bpe`), straight from Arrow buffers; all other tokenizers, and
those that the kernel does not know exactly, by Hugging Face `tokenizers`. A sample of the documents is encoded by
both, and a single different id stops the document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from cluster import storage
from cluster.errors import DataError, RecipeError
from pipeline.schema import TOKENS, Row, token_dtype
from pipeline.step import Documents, Transform, Verdict
from pipeline.tokens.byte_bpe import ByteBPE, Unsupported
from pipeline.tokens.order import document_keys
from pipeline.tokens.vocabulary import Vocabulary, read_vocabulary, tokenizer_folder, tokenizer_identity

_TRICKY = (
    "It's we'RE don'T \u017fhe'\u017f I'll 'd 'x ''s\n\n  \r\n \t x  y\u00a0z \u2028 \u3000中文，字 12345 1½ ٣٤٥ २"
    " 漢字かな交じり文 Ελληνικά Привет עברית ไทยไทย हिन्दी 한국어 e\u0301 \U0001f642\U0001f469\u200d\U0001f680"
    " <|endoftext|> a.b,c;(d)\n  end   "
)


class Encode(Transform):
    """Token ids of every document, by the tokenizer that an earlier step made or that `tokenizer` names."""

    takes: ClassVar[Row] = Row.DOCUMENT
    gives: ClassVar[Row] = Row.TOKENS

    tokenizer: str | None = Field(None, description="folder that AutoTokenizer opens; else the recipe's own")
    encoder: Literal["auto", "kernel", "huggingface"] = Field("auto", description="auto: our kernel where it is exact")
    verify_share: float = Field(0.002, ge=0, le=1, description="share of documents that both encoders must agree on")
    keep: list[str] = Field([], description="columns to carry along (scores or cluster sizes for mixing)")

    _reference: Any = PrivateAttr(None)
    _kernel: ByteBPE | None = PrivateAttr(None)
    _vocabulary: Vocabulary | None = PrivateAttr(None)

    def needs(self) -> Sequence[str]:
        return () if self.tokenizer else ("tokenizer",)

    def provides(self) -> dict[str, str]:
        return {"tokenizer": storage.absolute(self.tokenizer)} if self.tokenizer else {}

    def input_identity(self) -> list[Any]:
        return tokenizer_identity(self.tokenizer)

    def warm(self, artifacts: Mapping[str, str]) -> None:
        from tokenizers import Tokenizer

        folder = tokenizer_folder(self.tokenizer, artifacts, self.step_name())
        self._vocabulary = read_vocabulary(folder)
        text = storage.read_bytes(storage.join(folder, "tokenizer.json")).decode()
        reference = Tokenizer.from_str(text)
        # a document that spells out a special token must not be able to forge one
        reference.encode_special_tokens = True
        reference.no_truncation()
        reference.no_padding()
        self._reference = reference
        self._kernel = None
        if self.encoder != "huggingface":
            try:
                kernel = ByteBPE(json.loads(text))
                data = np.frombuffer(_TRICKY.encode(), np.uint8)
                dtype = np.dtype(token_dtype(self._vocabulary.size))
                ids, _ = kernel.encode(np.array([0, len(data)], np.int64), data, self._vocabulary.eos_id, dtype)
                if ids[:-1].tolist() != self._by_reference([_TRICKY])[0]:
                    raise Unsupported("the kernel gives other ids than tokenizers for the text that it is tried with")
                self._kernel = kernel
            except Unsupported as reason:
                if self.encoder == "kernel":
                    raise RecipeError(f"tokens.encode: the kernel cannot stand for {folder}: {reason}") from None

    @property
    def fast(self) -> bool:
        """Whether `warm` chose the kernel."""
        return self._kernel is not None

    def transform(self, docs: Documents) -> tuple[pa.RecordBatch, Verdict | None]:
        if self._vocabulary is None:
            raise RuntimeError("tokens.encode: warm() loads the tokenizer and must come first")
        docs = readable_documents(docs)
        dtype, eos_id = np.dtype(token_dtype(self._vocabulary.size)), self._vocabulary.eos_id
        if self._kernel is not None:
            ids, ends = self._kernel.encode(*docs.text_buffers(), eos_id, dtype)
            self._check_sample(docs, ids, ends)
        else:
            found = self._by_reference(docs.column("text").to_pylist())
            ends = np.cumsum([len(one) + 1 for one in found], dtype=np.int64)
            ids = np.concatenate([np.array([*one, eos_id], dtype) for one in found] or [np.zeros(0, dtype)])
        return token_rows(docs.batch, ids, ends, self.keep), None

    def _by_reference(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._reference.encode_batch_fast(texts, add_special_tokens=False)]

    def _check_sample(self, docs: Documents, ids: np.ndarray, ends: np.ndarray) -> None:
        """Compare both encoders on the documents that their hash picks. Raises DataError."""
        doc_ids = docs.column("doc_id")
        keys = document_keys(doc_ids, 0, "encoder check")
        picked = np.flatnonzero(keys < np.uint64(min(self.verify_share * 2.0**64, 2.0**64 - 2048)))
        for row in picked.tolist():
            expected = self._by_reference([docs.column("text")[row].as_py()])[0]
            found = ids[ends[row - 1] if row else 0 : ends[row] - 1].tolist()
            if found != expected:
                at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
                raise DataError(
                    f"tokens.encode: document {doc_ids[row].as_py().hex()}: token {at} is {found[at : at + 3]} by our "
                    f"kernel, {expected[at : at + 3]} by tokenizers; set encoder: huggingface and report the document"
                )


def readable_documents(docs: Documents) -> Documents:
    """The same documents, or with U+FFFD where a text is no UTF-8 (a lone surrogate), which no tokenizer takes."""
    from pipeline.kernels.text import readable

    before = docs.column("text")
    text = readable(before)
    if text is before:
        return docs
    return Documents(docs.batch.set_column(docs.batch.schema.get_field_index("text"), "text", text))


def token_rows(batch: pa.RecordBatch, ids: np.ndarray, ends: np.ndarray, keep: list[str]) -> pa.RecordBatch:
    """TOKENS rows from the ids of all documents of a batch, end to end, and where each one ends."""
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    data = pa.py_buffer(np.ascontiguousarray(ids))
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(ends), [None, pa.py_buffer(offsets * ids.dtype.itemsize), data]
    )
    lengths = pa.array(np.diff(offsets).astype(np.int32))
    columns = [*(batch.column(name) for name in ("doc_id", "source", "language")), lengths, column]
    fields = list(TOKENS)
    for name in [name for name in keep if name not in TOKENS.names]:
        if name not in batch.schema.names:
            raise DataError(f"tokens.encode: keep names the column '{name}'; the documents have {batch.schema.names}")
        fields.append(batch.schema.field(name))
        columns.append(batch.column(name))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
