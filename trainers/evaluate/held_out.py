"""Held-out loss per token and bits per byte, over ranks, on any number of named packed data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch

from cluster import storage
from trainers import sequence
from trainers.batch import IGNORE, PackedRows, shared_out
from trainers.ranks import Ranks
from trainers.roles import Role


class HeldOut:
    """One held-out set, read once and kept."""

    def __init__(self, data: PackedRows, *, rows: int, micro_rows: int, ranks: Ranks):
        """The first `rows` rows (0: all of them), shared out over ranks."""
        rows = min(rows or data.rows, data.rows)
        self.ranks = ranks
        self._bytes = token_bytes(data)
        mine = shared_out(data, 0, rows, micro_rows, rank=ranks.data_rank, world=ranks.data_world).micro_batches
        self._batches = [sequence.stretch(batch, ranks.place, ranks.sequence) for batch in mine]

    @torch.no_grad()
    def measure(self, role: Role) -> tuple[float, float]:
        """(mean −ln p per target, bits per byte of the targets). A collective; the same on every rank.

        Bits per byte = Σ −log₂ p(target) / Σ bytes of the target tokens: comparable between tokenizers. The end of a
        document counts with its bits and no bytes; the first token of a document, which nothing predicts, with neither.
        """
        summed = torch.zeros((), dtype=torch.float64)
        count = size = 0
        for batch in self._batches:
            summed += role(batch, "loss").double().cpu()
            targets = batch.targets[batch.targets != IGNORE]
            count += len(targets)
            size += int(self._bytes[targets].sum())
        total, targets_seen, bytes_seen = self.ranks.sum([float(summed), float(count), float(size)])
        return total / max(targets_seen, 1.0), total / math.log(2) / max(bytes_seen, 1.0)


def measure_all(sets: Mapping[str, HeldOut], role: Role) -> dict[str, float]:
    """{"validation": loss, "validation_bpb": bits per byte, "validation_NAME": …} over named sets."""
    figures: dict[str, float] = {}
    for name, held_out in sets.items():
        key = f"validation_{name}" if name else "validation"
        figures[key], figures[f"{key}_bpb"] = held_out.measure(role)
    return figures


def token_bytes(data: PackedRows) -> torch.Tensor:
    """Bytes of text behind each token id, int64 [vocabulary]; 0 for special tokens.

    Reads tokenizer.json alone. Byte-level pieces have one character per byte; SentencePiece-like ones spell a byte as
    <0x41> and a space as ▁.
    """
    about = json.loads(storage.read_bytes(storage.join(data.tokenizer, "tokenizer.json")))
    byte_level = any("ByteLevel" in json.dumps(about.get(part)) for part in ("pre_tokenizer", "decoder"))
    vocabulary = about["model"]["vocab"]
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else ((p[0], i) for i, p in enumerate(vocabulary))
    sizes = np.zeros(data.vocab_size, np.int64)
    for piece, number in pieces:
        if number < data.vocab_size:
            sizes[number] = len(piece) if byte_level else _plain_bytes(piece)
    for added in about.get("added_tokens", []):
        if added["id"] < data.vocab_size:
            sizes[added["id"]] = 0 if added.get("special") else len(added["content"].encode())
    return torch.from_numpy(sizes)


def _plain_bytes(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("▁", " ").encode())
