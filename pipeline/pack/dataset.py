"""The packed data set as one thing: final names of the shards, the tokenizer beside them, dataset.json, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import storage
from pipeline.schema import DATASET_FILE, DATASET_FORMAT
from pipeline.tokens.vocabulary import Vocabulary, tokenizer_files

TRAIN, VALIDATION = "train", "validation"
MODES = ("left_to_right", "psm", "spm")


def publish(
    folder: str,
    seq_len: int,
    vocabulary: Vocabulary,
    plan: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    fingerprint: str,
) -> dict[str, Any]:
    """Give the shards their final names, put the tokenizer beside them, write dataset.json last."""

    def split(name: str, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        listed = []
        for number, shard in enumerate(members):
            path = f"{name}-{number:05d}-of-{len(members):05d}.parquet"
            storage.copy(shard["path"], storage.join(folder, path))
            listed.append({"path": path, "rows": shard["rows"], "tokens": shard["tokens"]})
        sources: dict[str, dict[str, Any]] = {}
        tokens = sum(shard["tokens"] for shard in members)
        for shard in members:
            for source, counts in shard["sources"].items():
                entry = sources.setdefault(source, {"documents": 0, "tokens": 0})
                entry["documents"] += counts["documents"]
                entry["tokens"] += counts["tokens"]
        for entry in sources.values():
            entry["share"] = entry["tokens"] / tokens
        return {
            "rows": sum(shard["rows"] for shard in members),
            "tokens": tokens,
            "documents": sum(shard["documents"] for shard in members),
            "sources": dict(sorted(sources.items())),
            "shards": listed,
        }

    dataset: dict[str, Any] = {
        "format": DATASET_FORMAT,
        "seq_len": seq_len,
        "vocab_size": vocabulary.size,
        "pad_id": vocabulary.pad_id,
        "eos_id": vocabulary.eos_id,
        "loss_mask": plan["loss_mask"],
        "groups": plan["groups"],
        "tokenizer": "tokenizer",
        "tokenizer_hash": vocabulary.hash,
        "fingerprint": fingerprint,
        **split(TRAIN, shards[: plan[TRAIN]]),
    }
    if plan[VALIDATION]:
        dataset[VALIDATION] = split(VALIDATION, shards[plan[TRAIN] :])
    for name, path in tokenizer_files(vocabulary.folder).items():
        storage.write_bytes(storage.join(folder, "tokenizer", name), storage.read_bytes(path))
    text = json.dumps(dataset, indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(folder, DATASET_FILE), text.encode())
    return dataset


def report(shards: Sequence[Mapping[str, Any]], seq_len: int) -> dict[str, Any]:
    """Fill and cuts, for the run's report."""
    rows, tokens = sum(s["rows"] for s in shards), sum(s["tokens"] for s in shards)
    modes: dict[str, dict[str, int]] = {}
    for shard in shards:
        for source, counts in shard["sources"].items():
            mine = modes.setdefault(source, dict.fromkeys(MODES, 0))
            for mode in MODES:
                mine[mode] += counts.get(mode, 0)
    filled = {source: mine for source, mine in sorted(modes.items()) if mine["psm"] + mine["spm"]}
    return {
        "rows": rows,
        "tokens": tokens,
        "fill": tokens / max(1, rows * seq_len),
        "cut_documents": sum(s["cut"] for s in shards),
        "pieces": sum(s["pieces"] for s in shards),
        "shards": len(shards),
        **({"fim": filled} if filled else {}),
    }
