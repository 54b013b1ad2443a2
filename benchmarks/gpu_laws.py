"""What must hold on a GPU, checked on one in five to ten minutes by plain Python.

    python benchmarks/gpu_laws.py                  all laws
    python benchmarks/gpu_laws.py --laws packed    one of: packed, zero, worker, driver, memory, sequence, world
    python benchmarks/gpu_laws.py --device cpu --laws packed,zero,worker,driver,sequence,world    the script itself

packed: losses and gradients of packed rows equal the sum over their documents alone, within bf16 rounding, for every
attention kernel that is there. zero: a run that changes from ZeRO 1 to 3 at a checkpoint. worker, driver: kill -9 of
either, then the losses of an undisturbed run bit for bit. sequence: two devices that share every row (Ulysses) train
as one does, with each attention kernel (only where named; two GPUs). world: a run on two devices goes on with one and
then with two again, on the very same rows (only where named; two GPUs). memory: the estimate against the measured peak,
per shape, ZeRO stage, compile on and off. Prints one line per law; the exit code is the number of broken
laws.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PLACES = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
sys.path[:0] = PLACES

SMALL = {"hidden_size": 256, "layers": 4, "heads": 4, "intermediate_size": 704}
TINY = {"hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128}
"""On CPU, where the laws are the same and only the script is tried."""
VOCABULARY, SEQ_LEN = 4096, 512
CPU_VOCABULARY, CPU_SEQ_LEN = 512, 64
STEPS = 400
"""So many that a worker is still at it when it hears of its driver's end."""
MEMORY = (
    # shape, rows per forward pass, variants
    ("110m", 16, ("zero0+compile", "zero1+compile", "zero2+compile", "zero1", "zero3")),
    ("992m", 8, ("zero1+compile",)),
    ("992m", 4, ("zero1", "zero3")),
)


def recipe(data: str, device: str, **changes: Any) -> dict[str, Any]:
    """A run of some seconds."""
    return {
        "data": data, "model": SMALL if device == "cuda" else TINY,
        "schedule": {"rate": 1e-3, "warmup": 2}, "steps": STEPS, "batch_rows": 8,
        "micro_rows": 4, "workers": 1, "device": device, "export": False, "checkpoint_every": 20, "keep": 99,
        "engine": {"zero": 1}, "objective": {"validation_rows": 8}, **changes,
    }  # fmt: skip


def losses(out: str | Path) -> dict[int, float]:
    from trainers.log import read_metrics

    return {line["step"]: line["loss"] for line in read_metrics(str(out)) if "loss" in line}


def packed(folder: str, device: str) -> list[tuple[str, bool, str]]:
    """Per kernel: relative error of loss and gradient against float32 documents one by one."""
    import numpy as np
    import torch

    from trainers import model
    from trainers.batch import PackedRows, Rows, collate
    from trainers.model import ModelSettings, PackedLM

    rows = PackedRows(folder).read(0, 4)

    def fresh(kind: str, dtype: torch.dtype) -> PackedLM:
        shape = ModelSettings(**(SMALL if device == "cuda" else TINY))
        lm = model.build(shape, vocab_size=VOCABULARY, seq_len=SEQ_LEN, seed=3, pad=0, eos=1)
        return PackedLM(lm.to(device=device, dtype=dtype), kind)

    def run(ours: PackedLM, piece: Rows) -> float:
        batch = collate(piece).to(torch.device(device))
        loss = ours(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets)
        loss.backward()
        return float(loss)

    def flat(ours: PackedLM) -> torch.Tensor:
        return torch.cat([p.grad.double().reshape(-1) for p in ours.parameters()])

    def alone(dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        ours, total = fresh("sdpa", dtype), 0.0
        for ids, lengths in zip(rows.input_ids, rows.doc_lengths, strict=True):
            start = 0
            for size in lengths:
                total += run(ours, Rows(ids[None, start : start + size], [np.array([size])], None))
                start += size
        return total, flat(ours)

    true_loss, true_gradient = alone(torch.float32)
    rounded_loss, rounded_gradient = alone(torch.bfloat16)

    def gap(loss: float, gradient: torch.Tensor) -> tuple[float, float]:
        return abs(loss / true_loss - 1), float((gradient - true_gradient).norm() / true_gradient.norm())

    floor = gap(rounded_loss, rounded_gradient)
    found = []
    for kind in ("sdpa", "flex", "varlen") if device == "cuda" else ("sdpa",):
        try:
            ours = fresh(kind, torch.bfloat16)
            ours_gap = gap(run(ours, rows), flat(ours))
        except (ImportError, AttributeError, NotImplementedError) as error:
            found.append((f"packed equals separate, {kind}", False, f"not there: {error}"))
            continue
        # documents one by one in bf16 are as far from float32 as rounding brings them; packed may not be further
        good = ours_gap[0] < max(2 * floor[0], 1e-3) and ours_gap[1] < max(1.5 * floor[1], 0.02)
        text = f"loss off {ours_gap[0]:.1e} (alone in bf16 {floor[0]:.1e}), "
        text += f"gradient off {ours_gap[1]:.1e} ({floor[1]:.1e})"
        found.append((f"packed equals separate, {kind}", good, text))
    return found


def stopped(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run as if it had ended after a checkpoint."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("tensorboard"))
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return folder


def world(data: str, device: str, out: str, crew: Any) -> tuple[str, bool, str]:
    """20 steps on two devices, 20 on one, 20 on two again, against 60 on two."""
    from trainers.log import read_metrics
    from trainers.train import train

    def run(folder: Path, workers: int) -> dict[int, dict[str, Any]]:
        train(recipe(data, device, workers=workers, steps=60), str(folder), crew=crew)
        return {line["step"]: line for line in read_metrics(str(folder)) if "loss" in line}

    two, one = Path(out, "two"), Path(out, "two-one")
    whole = run(two, 2)
    run(stopped(two, one, 20), 1)
    moved = run(stopped(one, Path(out, "two-one-two"), 40), 2)
    rows = all(moved[step][name] == whole[step][name] for step in whole for name in ("row", "tokens"))
    worst = max(abs(moved[step]["loss"] / whole[step]["loss"] - 1) for step in whole)
    good = rows and moved.keys() == whole.keys() and worst < 5e-3
    told = f"rows and tokens of {len(whole)} steps {'equal' if rows else 'DIFFER'}, losses off by at most {worst:.1e}"
    return "two devices, then one, then two", good, told


def zero(data: str, device: str, out: str, whole: dict[int, float], crew: Any) -> tuple[str, bool, str]:
    """Half a run with ZeRO 1, the other half with ZeRO 3."""
    from trainers.train import train

    folder = stopped(Path(out, "whole"), Path(out, "one-to-three"), STEPS // 2)
    report = train(recipe(data, device, engine={"zero": 3}), str(folder), crew=crew)
    after = losses(folder)
    worst = max(abs(after[step] / whole[step] - 1) for step in range(STEPS // 2 + 1, STEPS // 2 + 31))
    exact = all(after[step] == whole[step] for step in range(1, STEPS // 2 + 1))
    good = report.steps_done == STEPS // 2 and exact and worst < 5e-3
    text = f"{report.steps_done} steps went on, the first 30 losses off by at most {worst:.1e}"
    return "ZeRO 1 to 3 at a checkpoint", good, text


def worker(data: str, device: str, out: str, whole: dict[int, float], crew: Any) -> tuple[str, bool, str]:
    """kill -9 of the worker in the middle; the driver starts another one."""
    from trainers.log import read_metrics
    from trainers.train import train

    folder, struck = Path(out, "struck"), threading.Event()
    ended = threading.Event()

    def strike() -> None:
        while not struck.is_set() and not ended.is_set():
            if len(read_metrics(str(folder))) >= 12:
                os.kill(json.loads((folder / "workers.json").read_text())["pids"][0], signal.SIGKILL)
                struck.set()
            time.sleep(0.005)

    striker = threading.Thread(target=strike)
    striker.start()
    report = train(recipe(data, device), str(folder), crew=crew)
    ended.set()
    striker.join()
    good = report.restarts == 1 and losses(folder) == whole
    same = sum(value == whole.get(step) for step, value in losses(folder).items())
    return "kill -9 of the worker", good, f"{report.restarts} restart, {same} of {STEPS} losses bit-equal"


def shared_rows(data: str, device: str, out: str, crew: Any) -> Iterator[tuple[str, bool, str]]:
    """Two devices that share the tokens of every row against one that has them, from the same start."""
    from trainers.train import train

    for kind in ("flex", "varlen", "sdpa") if device == "cuda" else ("sdpa",):
        runs = []
        for workers in (1, 2):
            engine = {"zero": 1, "attention": kind, "sequence": workers}
            changes = recipe(data, device, workers=workers, engine=engine, steps=20, save=False)
            folder = Path(out, f"sequence-{kind}-{workers}")
            try:
                train(changes, str(folder), crew=crew)
            except Exception as error:
                yield (f"two devices share rows, {kind}", False, str(error)[:300])
                break
            runs.append(losses(folder))
        else:
            worst = max(abs(runs[1][step] / runs[0][step] - 1) for step in runs[0])
            yield (f"two devices share rows, {kind}", worst < 5e-3, f"20 losses, worst off by {worst:.1e}")


def driver(data: str, device: str, out: str, whole: dict[int, float]) -> tuple[str, bool, str]:
    """kill -9 of the driver in the middle; the same command goes on."""
    from trainers.log import read_metrics

    folder = Path(out, "orphaned")
    command = [sys.executable, __file__, "--device", device, "--one", data, str(folder)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_metrics(str(folder))) < 12 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.005)
    first.kill()
    first.wait()
    second = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if second.returncode:
        return "kill -9 of the driver", False, second.stderr[-2000:]
    after = losses(folder)
    done = int(second.stdout.split()[-1])
    same = sum(value == whole.get(step) for step, value in after.items())
    return (
        "kill -9 of the driver",
        0 < done < STEPS and after == whole,
        f"{done} steps went on, {same} losses bit-equal",
    )


def memory(out: str, crew: Any) -> Iterator[tuple[str, bool, str]]:
    """Peak against estimate, one short run per variant in one worker that stays."""
    import bench_pretrain

    from trainers.log import read_metrics
    from trainers.train import train

    for shape, micro, variants in MEMORY:
        settings, vocabulary, seq_len, _ = bench_pretrain.SHAPES[shape]
        data = Path(out, f"{shape}-{micro}")
        bench_pretrain.write_rows(data, vocabulary, seq_len, micro * 4, 600)
        for variant in variants:
            engine = {"zero": int(variant[4]), "compile": "compile" in variant}
            folder = str(Path(out, f"memory-{shape}-{micro}-{variant}"))
            name = f"memory {shape}, micro-batch {micro}, {variant}"
            try:
                report = train(
                    {
                        "data": str(data), "model": settings, "engine": engine, "steps": 3, "batch_rows": micro,
                        "micro_rows": micro, "workers": 1, "device": "cuda", "save": False, "export": False,
                        "schedule": {"rate": 1e-4, "warmup": 0}, "stall_seconds": 600, "max_restarts": 0,
                    },
                    folder, crew=crew,
                )  # fmt: skip
            except Exception as error:
                yield (name, False, str(error)[:300])
                continue
            (expected,) = [x["memory_expected_gib"] for x in read_metrics(folder) if "memory_expected_gib" in x]
            peak = (report.peak_memory or 0) / 2**30
            off = expected / peak - 1
            yield (name, abs(off) <= 0.1, f"expected {expected:.1f} GiB, peak {peak:.1f} GiB ({off:+.1%})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", default="packed,worker,zero,driver,memory")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", help="write the table here (Markdown)")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from trainers.train import train

    if options.one:
        print(train(recipe(options.one[0], options.device), options.one[1]).steps_done)
        return 0
    import bench_pretrain

    from cluster import ray
    from trainers.workers import Crew

    laws = options.laws.split(",")
    broken = 0
    lines = ["| law | holds | figures |", "|---|---|---|"]

    def tell(rows: Iterable[tuple[str, bool, str]]) -> None:
        """Each law as soon as it is known: a machine may be taken away before the last one."""
        nonlocal broken
        for name, good, text in rows:
            broken += not good
            lines.append(f"| {name} | {'yes' if good else 'NO'} | {text} |")
            print(lines[-1], flush=True)
            if options.out:
                Path(options.out).write_text("\n".join(lines) + "\n")

    with tempfile.TemporaryDirectory() as out:
        data = str(Path(out, "data"))
        size = (VOCABULARY, SEQ_LEN) if options.device == "cuda" else (CPU_VOCABULARY, CPU_SEQ_LEN)
        bench_pretrain.write_rows(Path(data), *size, 400, size[1] // 4)
        if "packed" in laws:
            # in a process of its own, so that its GPU memory is gone afterwards
            code = f"import json, gpu_laws; print(json.dumps(gpu_laws.packed({data!r}, {options.device!r})))"
            place = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
            done = subprocess.run([sys.executable, "-c", code], env=place, capture_output=True, text=True, check=False)
            failed = [("packed equals separate", False, done.stderr[-2000:])]
            tell(json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else failed)
        if "sequence" in laws:
            with Crew() as crew:
                tell(shared_rows(data, options.device, out, crew))
        if "world" in laws:
            with Crew() as crew:
                tell([world(data, options.device, out, crew)])
        if {"worker", "zero", "driver"} & set(laws):
            with Crew() as crew:
                train(recipe(data, options.device), str(Path(out, "whole")), crew=crew)
                whole = losses(Path(out, "whole"))
                if "zero" in laws:
                    tell([zero(data, options.device, out, whole, crew)])
                if "worker" in laws:
                    tell([worker(data, options.device, out, whole, crew)])
            if "driver" in laws:
                ray.stop()
                tell([driver(data, options.device, out, whole)])
        if "memory" in laws and options.device == "cuda":
            with Crew() as crew:
                tell(memory(out, crew))
        ray.stop()
    return broken


if __name__ == "__main__":
    sys.exit(main())
