"""Pretraining speed: our engine (Ray, DeepSpeed, transformers classes) against a plain PyTorch loop, in one run.

    python benchmarks/bench_pretrain.py                          both shapes, the table of issue 7 (needs one GPU)
    python benchmarks/bench_pretrain.py --shapes 992m --rounds 3 --variants zero1+compile,plain
    python benchmarks/bench_pretrain.py --variants plain,zero1+compile+2gpus,zero3+2gpus      several GPUs, per GPU
    python benchmarks/bench_pretrain.py --shapes tiny --device cpu      a look at the script itself

The plain loop is a Llama written by hand below: the same attention kernel with the same document masks, the same
chunked loss, float32 weights under autocast, fused AdamW, the whole model compiled. Every variant runs in a process of
its own, all variants in turn, `--rounds` times; the table has the median over rounds of the steady steps. Variants of
whole rows (one document fills each) are compared with the plain loop on whole rows, the others with it on packed ones.
MFU counts 6 N per token and causal attention in full, skipped blocks included, against the device's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPES = {
    # name: (model settings, vocabulary, seq_len, rows per forward pass)
    "992m": ({"hidden_size": 2048, "layers": 18, "heads": 16, "intermediate_size": 5632}, 32_000, 4096, 8),
    "110m": ({"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 2048}, 32_000, 2048, 16),
    "tiny": ({"hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128}, 512, 256, 4),
}
VARIANTS = (
    "plain", "zero1+compile", "zero0+compile", "zero2+compile", "zero1", "zero3", "plain+whole_rows",
    "zero1+compile+whole_rows",
)  # fmt: skip


def gpus(variant: str) -> int:
    """How many devices a variant asks for, as in zero1+2gpus."""
    return next((int(part[:-4]) for part in variant.split("+") if part.endswith("gpus")), 1)


def write_rows(folder: Path, vocabulary: int, seq_len: int, rows: int, mean_document: int | None) -> None:
    """Random PACKED rows with documents of exponential length; None: one document per row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.schema import DATASET_FILE, DATASET_FORMAT, packed_schema

    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(rows):
        of_row, left = [], seq_len
        while left:
            size = left if mean_document is None else min(left, 2 + int(rng.exponential(mean_document)))
            of_row.append(size)
            left -= size
        lengths.append(of_row)
    ids = rng.integers(4, vocabulary, (rows, seq_len)).astype("uint16")
    table = pa.table(
        {
            "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), seq_len),
            "doc_lengths": lengths,
            "doc_ids": [[b"0" * 16] * len(row) for row in lengths],
        }
    ).cast(packed_schema(seq_len, vocabulary))
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "rows.parquet", row_group_size=64)
    about = {"format": DATASET_FORMAT, "seq_len": seq_len, "vocab_size": vocabulary, "pad_id": 0, "eos_id": 1}
    about |= {"rows": rows, "tokens": rows * seq_len, "tokenizer": "none", "fingerprint": "benchmark"}
    about |= {"shards": [{"path": "rows.parquet", "rows": rows, "tokens": rows * seq_len}]}
    (folder / DATASET_FILE).write_text(json.dumps(about))


def run_engine(data: str, shape: str, variant: str, steps: int, device: str) -> dict:
    """Our engine, through the same call as `corpusmill train`."""
    from trainers.log import read_metrics
    from trainers.train import train

    settings, _, _, micro = SHAPES[shape]
    parts = variant.split("+")
    engine = {"zero": int(parts[0].removeprefix("zero")), "compile": "compile" in parts}
    workers = gpus(variant)
    with tempfile.TemporaryDirectory() as out:
        report = train(
            {
                "data": data, "model": settings, "engine": engine, "steps": steps, "batch_rows": micro * workers,
                "micro_rows": micro, "workers": workers, "device": device, "save": False, "export": False,
                "schedule": {"rate": 1e-4, "warmup": 0}, "stall_seconds": 1800,
            },
            out,
        )  # fmt: skip
        seconds = [line["seconds"] for line in read_metrics(out) if "seconds" in line]
        waited = [line["wait_share"] for line in read_metrics(out) if "seconds" in line]
        (expected,) = [line["memory_expected_gib"] for line in read_metrics(out) if "memory_expected_gib" in line]
    return {
        "seconds": seconds,
        "peak_memory": report.peak_memory,
        "expected_gib": expected,
        "last_loss": report.last_loss,
        "wait_share": statistics.median(waited[steps // 2 :]),
    }


def run_plain(data: str, shape: str, steps: int, device: str) -> dict:
    """The plain loop: no Ray, no DeepSpeed, no transformers."""
    import torch

    from trainers.batch import Loader, PackedRows

    settings, vocabulary, _, micro = SHAPES[shape]
    torch.manual_seed(0)
    where = torch.device(device)
    model = PlainLlama(settings, vocabulary).to(where)
    if device == "cuda":
        model.blocks_forward = torch.compile(model.blocks_forward, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=device == "cuda")
    loader = Loader(PackedRows(data), rows_per_step=micro, micro_rows=micro)
    seconds, loss = [], None
    clock = time.perf_counter()
    for _ in range(steps):
        (batch,) = next(loader).micro_batches
        count = batch.target_count()
        batch = batch.to(where)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(batch) / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss)  # the step's loss is logged there too
        now = time.perf_counter()
        seconds.append(now - clock)
        clock = now
    loader.close()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": seconds, "peak_memory": peak, "last_loss": float(loss), "wait_share": 0.0}


def PlainLlama(settings: dict, vocabulary: int):
    """A Llama by hand: RMSNorm, rotary positions, SwiGLU, tied embeddings."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.attention.flex_attention import flex_attention

    from trainers.cross_entropy import loss_sum
    from trainers.model import documents_mask

    width, heads = settings["hidden_size"], settings["heads"]
    head = width // heads

    def rotate(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
            self.gate_up = nn.Linear(width, 2 * settings["intermediate_size"], bias=False)
            self.down = nn.Linear(settings["intermediate_size"], width, bias=False)
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

        def forward(self, x, mask, cos, sin):
            rows, length, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, heads, head).permute(2, 0, 3, 1, 4)
            q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
            if isinstance(mask, torch.Tensor):
                seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            else:
                seen = flex_attention(q, k, v, block_mask=mask)
            x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
            return x + self.down(functional.silu(gate) * up)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(vocabulary, width)
            self.blocks = nn.ModuleList(Block() for _ in range(settings["layers"]))
            self.norm = nn.RMSNorm(width)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)
            self.register_buffer("frequency", 1.0 / 10_000 ** (torch.arange(0, head, 2) / head), persistent=False)

        def blocks_forward(self, ids, positions, mask):
            angle = (positions[:, None, :, None] * self.frequency).repeat(1, 1, 1, 2)
            cos, sin = angle.cos(), angle.sin()
            x = self.table(ids)
            for block in self.blocks:
                x = block(x, mask, cos, sin)
            return self.norm(x)

        def forward(self, batch):
            mask = documents_mask(batch.doc_index, "flex" if batch.input_ids.is_cuda else "sdpa")
            hidden = self.blocks_forward(batch.input_ids, batch.position_ids, mask)
            return loss_sum(hidden.reshape(-1, width), self.table.weight, batch.targets.reshape(-1))

    return Plain()


def figures(result: dict, shape: str, device: str, name: str) -> dict:
    from trainers.model import ModelSettings, flops_per_token
    from trainers.session import PEAK_FLOPS

    settings, vocabulary, seq_len, micro = SHAPES[shape]
    steady = result["seconds"][len(result["seconds"]) // 2 :]
    speed = micro * seq_len / statistics.median(steady)
    parameters = ModelSettings(**settings).parameters(vocabulary)
    flops = flops_per_token(parameters, 0, settings["layers"], settings["hidden_size"], seq_len)
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None) if device == "cuda" else None
    return {"tokens_per_second": speed, "mfu": speed * flops / peak if peak else None, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="992m,110m")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", help="write the table and the raw figures here (Markdown)")
    parser.add_argument("--one", nargs=3, metavar=("DATA", "SHAPE", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        data, shape, variant = options.one
        plain = variant.startswith("plain")
        run = run_plain if plain else run_engine
        extra = () if plain else (variant,)
        print("RESULT " + json.dumps(run(data, shape, *extra, options.steps, options.device)))
        return
    name = "CPU"
    if options.device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    about = f"Device: {name}. Steps {options.steps} per round, the second half counts; {options.rounds} rounds."
    found: dict[tuple[str, str], list[dict]] = {}
    for shape in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            _, vocabulary, seq_len, micro = SHAPES[shape]
            write_rows(Path(folder, "packed"), vocabulary, seq_len, micro * 16, 600)
            write_rows(Path(folder, "whole"), vocabulary, seq_len, micro * 16, None)
            for _ in range(options.rounds):
                for variant in options.variants.split(","):
                    data = str(Path(folder, "whole" if "whole_rows" in variant else "packed"))
                    command = [sys.executable, __file__, "--one", data, shape, variant]
                    command += ["--steps", str(options.steps), "--device", options.device]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    answer = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                    if not answer:
                        print(f"{shape} {variant} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
                        continue
                    result = figures(json.loads(answer[0][7:]), shape, options.device, name)
                    found.setdefault((shape, variant), []).append(result)
                    lines = table(found)
                    print(lines[-1], file=sys.stderr, flush=True)
                    if options.out:  # after every run: the last one may be cut off
                        Path(options.out).write_text("\n".join([about, "", *lines]) + "\n")
    print("\n".join([about, "", *table(found)]))


def table(found: dict[tuple[str, str], list[dict]]) -> list[str]:
    """Markdown lines of what was measured so far, (shape, variant) → rounds; the latest pair last."""
    lines = [
        "| shape | variant | tokens/s and device | of plain | MFU | peak memory | expected | data wait | last loss |"
    ]
    lines.append("|---" * 9 + "|")
    for (shape, variant), results in found.items():
        speed = statistics.median(r["tokens_per_second"] for r in results)
        mfu = f"{statistics.median(r['mfu'] for r in results):.1%}" if results[0]["mfu"] else "–"
        memory = f"{results[0]['peak_memory'] / 2**30:.1f} GiB" if results[0]["peak_memory"] else "–"
        expected = f"{results[0]['expected_gib']:.1f} GiB" if results[0].get("expected_gib") else "–"
        plain = found.get((shape, "plain+whole_rows" if "whole_rows" in variant else "plain"))
        ratio = f"{speed / statistics.median(r['tokens_per_second'] for r in plain):.2f}" if plain else "–"
        lines.append(
            f"| {shape} | {variant} | {speed:,.0f} | {ratio} | {mfu} | {memory} | {expected} | "
            f"{results[0]['wait_share']:.1%} | {results[0]['last_loss']:.3f} |"
        )
    return lines


if __name__ == "__main__":
    main()
