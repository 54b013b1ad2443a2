"""Held-out loss per token and bits per byte, in all and by group, over ranks, on any number of packed data sets."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cluster import storage
from trainers import sequence
from trainers.batch import IGNORE, PackedRows, padded, share_of, shared_out
from trainers.ranks import Ranks
from trainers.roles import Role

MOST_GROUPS = 20
"""Values of a column with figures of their own, those with the most documents; the others are told as OTHER."""
OTHER, UNKNOWN = "other", "unknown"


class HeldOut:
    """One held-out set, read once and kept."""

    def __init__(self, data: PackedRows, *, rows: int, micro_rows: int, ranks: Ranks):
        """The first `rows` rows (0: all of them), shared out over ranks."""
        rows = min(rows or data.rows, data.rows)
        self.ranks = ranks
        self._bytes = token_bytes(data)
        mine = shared_out(data, 0, rows, micro_rows, rank=ranks.data_rank, world=ranks.data_world).micro_batches
        self._batches = [sequence.stretch(batch, ranks.place, ranks.sequence) for batch in mine]
        self.groups: dict[str, list[str]] = {}
        """Per column of groups with two values or more in these rows, its values."""
        self._members: list[list[Tensor]] = [[] for _ in mine]
        """Per batch and column, the number of its value in `groups`, for each document of each row."""
        for column in data.groups:
            self._group(data, column, rows, micro_rows)

    def _group(self, data: PackedRows, column: str, rows: int, micro_rows: int) -> None:
        values = [[UNKNOWN if one is None else one for one in row] for row in data.group_values(column, 0, rows)]
        documents = Counter(value for row in values for value in row)
        names = sorted(sorted(documents), key=lambda name: -documents[name])
        if len(names) > MOST_GROUPS:
            names = [*[name for name in names if name != OTHER][: MOST_GROUPS - 1], OTHER]
        if len(names) < 2:
            return
        self.groups[column] = names
        number = {name: place for place, name in enumerate(names)}
        rest = number.get(OTHER, 0)
        parts = share_of(self.ranks.data_rank, self.ranks.data_world, rows, micro_rows)
        for members, batch, part in zip(self._members, self._batches, parts, strict=True):
            found = padded([np.array([number.get(v, rest) for v in values[row]], np.int64) for row in part])
            blank = torch.zeros((batch.rows, int(batch.doc_index.max()) + 1), dtype=torch.int64)
            blank[: found.shape[0], : found.shape[1]] = torch.from_numpy(found)
            members.append(blank)

    @torch.no_grad()
    def measure(self, role: Role) -> dict[str, tuple[float, float]]:
        """{"": (mean −ln p per target, bits per byte of the targets), "COLUMN/VALUE": the same of its documents}.

        A collective; the same on every rank. Bits per byte = Σ −log₂ p(target) / Σ bytes of the target tokens:
        comparable between tokenizers. The end of a document counts with its bits and no bytes; the first token of a
        document, which nothing predicts, with neither. So loss × targets summed over a column's values is that of all.
        """
        names = ["", *(f"{column}/{value}" for column, values in self.groups.items() for value in values)]
        sums = torch.zeros((len(names), 3), dtype=torch.float64)
        for batch, members in zip(self._batches, self._members, strict=True):
            used = batch.targets != IGNORE
            targets = batch.targets[used]
            losses = role(batch, "token_losses").double().cpu()[used]
            told = torch.stack([losses, torch.ones_like(losses), self._bytes[targets].double()], 1)
            sums[0] += told.sum(0)
            first, width = 1, batch.targets.shape[1]
            documents = batch.doc_index[:, self.ranks.place * width :][:, :width].long()
            for values, of_document in zip(self.groups.values(), members, strict=True):
                group = of_document.gather(1, documents)[used]
                sums[first : first + len(values)].index_add_(0, group, told)
                first += len(values)
        summed = np.array(self.ranks.sum(sums.flatten().tolist())).reshape(-1, 3)
        return {
            name: (total / max(count, 1.0), total / math.log(2) / max(size, 1.0))
            for name, (total, count, size) in zip(names, summed.tolist(), strict=True)
            if count or not name
        }


def measure_all(sets: Mapping[str, HeldOut], role: Role) -> dict[str, float]:
    """{"validation": loss, "validation_bpb": bits per byte, "validation_NAME": …} over named sets, and by group
    "validation_language/en", "validation_language_bpb/en", …"""
    figures: dict[str, float] = {}
    for name, held_out in sets.items():
        key = f"validation_{name}" if name else "validation"
        for group, (loss, bits) in held_out.measure(role).items():
            column, slash, value = group.partition("/")
            of_column = f"{key}_{column}" if column else key
            figures[f"{of_column}{slash}{value}"], figures[f"{of_column}_bpb{slash}{value}"] = loss, bits
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
