"""A teacher's likeliest next tokens beside packed rows, stored once for many students of `trainer: distill`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from cluster.errors import DataError
from pipeline.schema import DATASET_FILE
from trainers.attention import pick_attention
from trainers.batch import PackedRows, collate
from trainers.divergence import bucketed, log_probabilities
from trainers.model import PackedLM, load, load_tokenizer
from trainers.roles import Frozen


def check_vocabulary(teacher: str, data: Any) -> None:
    """Refuse a teacher whose token numbers mean other tokens than the data's. Raises DataError with both numbers."""
    from transformers import AutoConfig

    if not Path(teacher, "config.json").is_file():
        raise DataError(f"{teacher}: no config.json; a teacher is a transformers folder")
    rows = AutoConfig.from_pretrained(teacher).vocab_size
    if rows < data.vocab_size:
        raise DataError(
            f"{teacher}: the teacher has {rows:,} tokens, the data {data.vocab_size:,}; take a teacher with the "
            "student's tokenizer, or pack the data with a tokenizer that both share"
        )
    if not Path(teacher, "tokenizer.json").is_file():
        return
    theirs = load_tokenizer(teacher).get_vocab()
    ours = load_tokenizer(data.tokenizer).get_vocab()
    other = sum(theirs.get(token) != number for token, number in ours.items())
    if other:
        raise DataError(
            f"{teacher}: the teacher's tokenizer has {len(theirs):,} tokens, the data's {len(ours):,}, and {other:,} "
            "of these have another number or none there; logits can only be compared token by token"
        )


@torch.no_grad()
def write_teacher(
    data: str, teacher: str, out: str, *, k: int = 32, temperature: float = 1.0, micro_rows: int = 8
) -> None:
    """Copy a packed data set with a teacher's k likeliest next tokens at every position, for `stored: true`.

    Columns: `teacher_ids` int32, k per position, and `teacher_log_p` float32, k + 1 per position: log p of them at the
    temperature, and of all other tokens together. k is stored as given, or as the vocabulary if that is smaller.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = PackedRows(data)
    check_vocabulary(teacher, whole)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    role = Frozen(PackedLM(load(teacher), pick_attention(device)), device, dtype)
    k = min(k, whole.vocab_size)
    aside = f"{out}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(data, aside)
    for split in (None, "validation"):
        if split and not whole.has_split(split):
            continue
        source = PackedRows(data, split)
        first = 0
        for shard in (source.about if split is None else source.about[split])["shards"]:
            path = os.path.join(aside, shard["path"])
            table = pq.read_table(path)
            ids, log_p = [], []
            for begin in range(0, table.num_rows, micro_rows):
                batch = collate(source.read(first + begin, min(micro_rows, table.num_rows - begin)))
                logits = role(batch, "logits")[..., : whole.vocab_size]
                for row in logits:
                    of_row = log_probabilities(row, temperature)
                    chosen = of_row.topk(k, -1).indices
                    ids.append(chosen.int().cpu().flatten())
                    log_p.append(bucketed(of_row, chosen).cpu().flatten())
            first += table.num_rows
            table = table.drop_columns([name for name in table.column_names if name.startswith("teacher_")])
            for name, rows, width, kind in (
                ("teacher_ids", ids, k, pa.int32()),
                ("teacher_log_p", log_p, k + 1, pa.float32()),
            ):
                values = pa.array(torch.cat(rows).numpy(), kind)
                table = table.append_column(name, pa.FixedSizeListArray.from_arrays(values, width * whole.seq_len))
            pq.write_table(table, path, row_group_size=64, compression="zstd")
    about = json.loads(Path(aside, DATASET_FILE).read_text())
    about["teacher"] = {"model": teacher, "k": k, "temperature": temperature}
    Path(aside, DATASET_FILE).write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)
