"""What a run leaves for people and scripts: documents, packed rows, tokenizer and ledger under fixed names in OUT.

Published files are second names (hard links, or server-side copies on S3) of what the stages committed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

from cluster import storage
from pipeline.plan import Stage
from pipeline.schema import Row
from pipeline.tokens.vocabulary import tokenizer_files


def publish(out: str, stages: Sequence[Stage], summaries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Fill OUT/documents, OUT/packed, OUT/tokenizer, OUT/ledger; {name: path} of those that the recipe makes."""
    outputs: dict[str, str] = {}
    with_documents = [s for stage, s in zip(stages, summaries, strict=True) if stage.gives == Row.DOCUMENT]
    if with_documents:
        outputs["documents"] = storage.join(out, "documents")
        _mirror(outputs["documents"], _parts(with_documents[-1]["partitions"]))
    packed = [s for stage, s in zip(stages, summaries, strict=True) if stage.gives == Row.PACKED]
    if packed:
        outputs["packed"] = storage.join(out, "packed")
        _mirror(outputs["packed"], _below(packed[-1]["decided"]["path"]))
    tokenizer = summaries[-1]["artifacts"].get("tokenizer")
    if tokenizer:
        outputs["tokenizer"] = storage.join(out, "tokenizer")
        _mirror(outputs["tokenizer"], tokenizer_files(tokenizer))
    outputs["ledger"] = storage.join(out, "ledger")
    ledgers: dict[str, str] = {}
    for stage, summary in zip(stages, summaries, strict=True):
        for number, path in enumerate(summary.get("files", {}).get("ledger", [])):
            ledgers[f"{stage.number:02d}-{stage.name}-{number:05d}.parquet"] = path
    _mirror(outputs["ledger"], ledgers)
    return outputs


def _parts(partitions: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {f"part-{p['index']:05d}.parquet": p["file"] for p in partitions if p["file"]}


def _below(folder: str) -> dict[str, str]:
    return {e.path[len(folder.rstrip("/")) + 1 :]: e.path for e in storage.list_files(folder)}


def _mirror(folder: str, files: dict[str, str]) -> None:
    """Make `folder` hold exactly these files, {relative name: where its bytes are}."""
    for name, source in files.items():
        storage.copy(source, storage.join(folder, name))
    keep = {posixpath.normpath(name) for name in files}
    for item in list(storage.list_files(folder)):
        if item.path[len(folder) + 1 :] not in keep:
            storage.delete(item.path)
