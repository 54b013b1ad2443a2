"""SmolLM2-135M-Instruct taught and shrunk by every trainer that learns from fixed data; one markdown table each.

Prepare once, where the raw files are (../shared/data/posttrain) and where `gguf` is installed:

    python benchmarks/smollm2.py prepare DATA --model SmolLM2-135M-Instruct.gguf [--pieces 2]

writes DATA/sft, DATA/answers and DATA/better (the better answers alone; packed rows, tokenizer; under 8 MB) and
DATA/site (the pure-Python `gguf`); with `--pieces` also the model file in so many pieces, in DATA/../smollm2_pieces.N.
Then, offline, on a GPU (or CPU):

    python benchmarks/smollm2.py sft     --data DATA --model MODEL --work RUNS
    python benchmarks/smollm2.py reward  …            accuracy on held-out pairs with its 95 % interval
    python benchmarks/smollm2.py dpo     …            after SFT: win rates, by the model that `reward` made
    python benchmarks/smollm2.py peft    …            one row for each method; --methods "lora;ia3" for some
    python benchmarks/smollm2.py distill …            half the blocks, with the teacher and without
    python benchmarks/smollm2.py prune   …            to 50 %: perplexity before, after, healed; speed-up

MODEL: a transformers folder, a .gguf file, or a folder with its pieces. `--model tiny` builds a small random one with
the same tokenizer; `--steps 2` makes each run two steps long: to try the script itself. Each command takes two
to four minutes on an H100, through Ray and DeepSpeed workers. `--out FILE` appends the table to a file as well.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
POSTTRAIN = ROOT.parent / "shared" / "data" / "posttrain"
SFT_FILES = ("llamafactory_alpaca_en_demo", "llamafactory_alpaca_zh_demo")
PAIR_FILES = ("hh_rlhf_harmless_base_test", "llamafactory_dpo_en_demo", "llamafactory_dpo_zh_demo")

METHODS: dict[str, tuple[dict[str, Any] | None, float]] = {
    "full": (None, 2e-5),
    "lora": ({"method": "lora"}, 1e-3),
    "lora, rank-stabilised": ({"method": "lora", "rank_stabilized": True}, 5e-4),
    "dora": ({"method": "lora", "dora": True}, 1e-3),
    "ia3": ({"method": "ia3"}, 1e-2),
    "prefix": ({"method": "prefix"}, 1e-2),
    "prompt": ({"method": "prompt"}, 1e-1),
    "p-tuning": ({"method": "prompt", "encoder": 128}, 1e-3),
    "adapter, houlsby": ({"method": "adapter", "placement": "houlsby"}, 1e-3),
    "adapter, pfeiffer": ({"method": "adapter", "placement": "pfeiffer"}, 1e-3),
    "loramoe": ({"method": "loramoe"}, 1e-3),
    "norms only": ({"method": "selective", "names": ["*norm*"]}, 1e-3),
    "last two blocks": ({"method": "selective", "layers": [-1, -2]}, 1e-4),
    "diff pruning": ({"method": "diff_pruning"}, 1e-4),
}
"""Name in the table → the `peft:` block and the learning rate."""


# ---- data and model ----------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    """Packed rows, the gguf package, and the model in pieces."""
    import gzip

    from trainers.answers import judged, read_examples, write_answers

    out = Path(options.folder)
    model = start(options, out)
    raw, better = out / "alpaca.jsonl", out / "better.jsonl"
    with raw.open("w") as lines:
        for name in SFT_FILES:
            for line in gzip.decompress((POSTTRAIN / f"{name}.jsonl.gz").read_bytes()).decode().splitlines():
                one = json.loads(line)
                asked = "\n".join(text for text in (one["instruction"], one.get("input", "")) if text)
                made = {"prompt": asked, "completion": one["output"], "label": True}
                lines.write(json.dumps(made, ensure_ascii=False) + "\n")
    pairs = [str(POSTTRAIN / f"{one}.jsonl.gz") for one in PAIR_FILES]
    with better.open("w") as lines:
        for path in pairs:
            for example in read_examples(path):
                try:
                    one = judged(example)
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    AttributeError,
                ):  # counted below, where the pairs themselves are written
                    continue
                made = {"prompt": one.prompt, "completion": one.answers[0], "label": True}
                lines.write(json.dumps(made, ensure_ascii=False) + "\n")
    for name, sources, seq_len in (
        ("sft", [str(raw)], 1024),
        ("answers", pairs, 2048),
        ("better", [str(better)], 2048),
    ):
        about = write_answers(sources, str(model), str(out / name), seq_len=seq_len, validation=0.15)
        held = about["validation"]["rows"]
        print(f"{name}: {about['prompts']} prompts, {about['rows']} rows, {held} held out, refused {about['refused']}")
    raw.unlink()
    better.unlink()
    shutil.rmtree(out / "start")
    try:
        import gguf
    except ImportError:
        print("gguf is not installed here: not copied")
    else:
        where = Path(gguf.__file__).parent
        for path in (where, *where.parent.glob("gguf-*.dist-info")):
            shutil.copytree(path, out / "site" / path.name, dirs_exist_ok=True)
    if options.pieces:
        whole = Path(options.model).read_bytes()
        size = -(-len(whole) // options.pieces)
        for number in range(options.pieces):
            piece = out.parent / f"smollm2_pieces.{number}"
            piece.mkdir(exist_ok=True)
            (piece / f"model.gguf.{number}").write_bytes(whole[number * size : (number + 1) * size])


def start(options: argparse.Namespace, work: Path) -> Path:
    """The model's transformers folder, made below `work` on the first call."""
    folder, given = work / "start", Path(options.model)
    if (given / "config.json").is_file():
        return given.resolve()
    if (folder / "config.json").is_file():
        return folder.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.model == "tiny":
        return tiny(Path(options.data) / "sft" / "tokenizer", folder)
    if (Path(options.data or ".") / "site").is_dir():
        sys.path.append(str(Path(options.data) / "site"))
    if given.is_dir():
        pieces = sorted(given.glob("*.gguf.[0-9]"))
        given = work / "model.gguf"
        given.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm: Any = AutoModelForCausalLM.from_pretrained(str(given.parent), gguf_file=given.name)
    written(lm, AutoTokenizer.from_pretrained(str(given.parent), gguf_file=given.name), folder)
    return folder.resolve()


def tiny(tokenizer: Path, folder: Path) -> Path:
    """A random model of four narrow blocks, to try the script."""
    from transformers import AutoTokenizer

    from trainers.model import ModelSettings, build

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    shape = ModelSettings(hidden_size=32, layers=4, heads=4, kv_heads=2, intermediate_size=64)
    eos = loaded.eos_token_id
    written(build(shape, vocab_size=len(loaded), seq_len=2048, seed=0, pad=eos, eos=eos), loaded, folder)
    return folder.resolve()


def written(lm: Any, tokenizer: Any, folder: Path) -> None:
    """A plain folder: a model from GGUF would not be saved by transformers itself."""
    from trainers.model import export

    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config
    export(lm, dict(lm.named_parameters()), None, str(folder))
    tokenizer.save_pretrained(folder)


# ---- runs --------------------------------------------------------------------------------------------------------


class Bench:
    """Runs below one folder, on workers that stay."""

    def __init__(self, options: argparse.Namespace):
        import torch

        from trainers.workers import Crew

        self.options, self.work = options, Path(options.work).resolve()
        self.start = start(options, self.work)
        self.sft, self.answers, self.better = (
            Path(options.data).resolve() / name for name in ("sft", "answers", "better")
        )
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.crew = Crew()

    def run(self, name: str, steps: int, rate: float, data: Path, **fields: Any) -> tuple[Any, dict[str, float]]:
        """Train anew; the report and the last evaluation's figures. 16 rows of a data set per step."""
        from trainers.log import read_metrics
        from trainers.train import train

        out = self.work / name.replace(", ", "_").replace(" ", "_")
        shutil.rmtree(out, ignore_errors=True)
        micro = 8 if data == self.sft else 4
        small = {} if self.cuda else {"workers": 1, "device": "cpu", "threads": 2}
        recipe = {
            "start_from": str(self.start), "data": str(data), "steps": self.options.steps or steps,
            "schedule": {"rate": rate, "warmup": min(5, (self.options.steps or steps) // 2)}, "save": False,
            "batch_rows": 16 if self.cuda else 2, "micro_rows": micro if self.cuda else 1,
            "engine": {"zero": 1, "weight_decay": 0.0}, **small, **fields,
        }  # fmt: skip
        if not self.cuda:
            recipe["objective"] = {**recipe.get("objective", {}), "validation_rows": 4}
        report = train(recipe, str(out), crew=self.crew)
        lines = read_metrics(str(out))
        last = next(line for line in reversed(lines) if "validation" in line)
        speeds = sorted(line["seconds"] for line in lines if "seconds" in line)
        last["seconds"] = speeds[len(speeds) // 2]
        last["positions"] = recipe["batch_rows"] * json.loads((data / "dataset.json").read_text())["seq_len"]
        last["share"] = next(line["trained_share"] for line in lines if "trained_share" in line)
        return report, last

    def held_out(self, folder: Path | str) -> float:
        """Mean −log p of the held-out responses of `sft`, in float32 as exported."""
        import torch

        from trainers.attention import pick_attention
        from trainers.batch import PackedRows
        from trainers.evaluate.held_out import HeldOut
        from trainers.model import PackedLM, load
        from trainers.ranks import Ranks
        from trainers.roles import Frozen

        rows = 0 if self.cuda else 4
        ranks = Ranks(0, 1, self.device)
        held = HeldOut(
            PackedRows(str(self.sft), "validation"), rows=rows, micro_rows=8 if self.cuda else 1, ranks=ranks
        )
        dtype = torch.bfloat16 if self.cuda else torch.float32
        return held.measure(Frozen(PackedLM(load(str(folder)), pick_attention(self.device)), self.device, dtype))[""][0]


def told(title: str, head: list[str], rows: list[list[str]], options: argparse.Namespace, began: float) -> None:
    """Print one markdown table."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{where}, torch {torch.__version__}, {time.monotonic() - began:.0f} s in all", ""]
    print("\n" + "\n".join(lines))
    if options.out:
        with Path(options.out).open("a") as file:
            file.write("\n".join(lines) + "\n")


def wilson(right: float, count: int) -> tuple[float, float]:
    """95 % interval of a share. Wilson 1927."""
    z, share = 1.959964, right / count
    middle, spread = (share + z * z / (2 * count)), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


# ---- commands ----------------------------------------------------------------------------------------------------


def sft(bench: Bench, began: float) -> None:
    before = bench.held_out(bench.start)
    report, last = bench.run("sft", 24, 5e-5, bench.sft, trainer="sft")
    again = bench.held_out(report.export)
    rows = [
        ["start", f"{before:.4f}", f"{math.exp(before):.2f}", ""],
        ["after", f"{last['validation']:.4f}", f"{math.exp(last['validation']):.2f}", f"{speed(last):,.0f}"],
        ["after, reloaded", f"{again:.4f}", f"{math.exp(again):.2f}", ""],
    ]
    head = ["SFT on the alpaca demos", "held-out loss", "perplexity", "positions/s"]
    told(f"Instruction tuning, {report.steps} steps", head, rows, bench.options, began)


def speed(last: dict[str, float]) -> float:
    """Positions per second of the median step, padding included."""
    return last["positions"] / last["seconds"]


def reward(bench: Bench, began: float) -> None:
    report, last = bench.run("reward", 30, 2e-5, bench.answers, trainer="reward", objective={"centring": 0.01})
    names = ["accuracy", "calibration_error", "accuracy_longer_better", "accuracy_shorter_better", "length_correlation"]
    rows = [["loss", f"{last['validation']:.4f}"]]
    for name in names:
        if f"validation_{name}" in last:
            rows.append([name.replace("_", " "), f"{last[f'validation_{name}']:.3f}"])
    rows[1][1] += f" ({last['validation_accuracy_low']:.3f} to {last['validation_accuracy_high']:.3f})"
    told(f"Reward model on held-out pairs, {report.steps} steps", ["figure", "value"], rows, bench.options, began)


def dpo(bench: Bench, began: float) -> None:
    judge = bench.work / "reward" / "model"
    if not judge.is_dir():
        sys.exit(f"{judge}: not there; run `reward` first: its model judges")
    # as in Rafailov et al. 2023, section 4: the reference has learned the better answers before
    told_better, _ = bench.run("dpo_start", 60, 2e-5, bench.better, trainer="sft")
    report, last = bench.run(
        "dpo", 60, 2e-6, bench.answers, trainer="preference", objective={"beta": 0.1}, start_from=told_better.export
    )
    prompts = held_out_prompts(bench, 96 if bench.cuda else 2)
    folders = {"start": bench.start, "after SFT": told_better.export, "after DPO": report.export}
    answers = {name: generated(bench, folder, prompts) for name, folder in folders.items()}
    worth = {name: values(bench, judge, prompts, one) for name, one in answers.items()}
    rows = []
    for one, other in (("after SFT", "start"), ("after DPO", "start"), ("after DPO", "after SFT")):
        pairs = zip(worth[one], worth[other], strict=True)
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        low, high = wilson(wins, len(prompts))
        rows.append([f"{one} against {other}: win rate", f"{wins / len(prompts):.3f} ({low:.3f} to {high:.3f})"])
    for name, found in worth.items():
        lengths = [len(answer) for answer in answers[name]]
        rows.append([f"{name}: mean reward", f"{sum(found) / len(found):.3f}"])
        rows.append([f"{name}: mean length", f"{sum(lengths) / len(lengths):.0f}"])
    rows += [
        ["held-out accuracy", f"{last['validation_accuracy']:.3f}"],
        ["held-out loss (ln 2 at first)", f"{last['validation']:.4f}"],
    ]
    title = f"DPO judged by the reward model on {len(prompts)} held-out prompts, {report.steps} steps"
    told(title, ["figure", "value"], rows, bench.options, began)


def held_out_prompts(bench: Bench, most: int) -> list[list[int]]:
    """Token ids of held-out prompts up to the answer, each once, of at most 512 tokens."""
    from trainers.batch import PackedRows

    data = PackedRows(str(bench.answers), "validation")
    rows = data.read(0, data.rows)
    assert rows.loss_mask is not None
    found: list[list[int]] = []
    for ids, mask, lengths in zip(rows.input_ids, rows.loss_mask, rows.doc_lengths, strict=True):
        begin = 0
        for size in lengths.tolist():
            prompt = ids[begin : begin + int(mask[begin : begin + size].argmax())].tolist()
            if 0 < len(prompt) <= 512 and prompt not in found[-1:]:
                found.append(prompt)
            begin += size
    return found[:most]


def generated(bench: Bench, folder: Path | str, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers of up to 128 tokens with their end of turn, by transformers' own generate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    eos = AutoTokenizer.from_pretrained(str(bench.start)).eos_token_id
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    lm: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).to(bench.device).eval()
    wide = max(map(len, prompts))
    ids = torch.tensor([[eos] * (wide - len(one)) + one for one in prompts], device=bench.device)
    mask = torch.tensor([[0] * (wide - len(one)) + [1] * len(one) for one in prompts], device=bench.device)
    new = 128 if bench.cuda else 4
    with torch.no_grad():
        out = lm.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=eos, pad_token_id=eos
        )
    answers = out[:, wide:].tolist()
    return [one[: one.index(eos) + 1] if eos in one else [*one, eos] for one in answers]


def values(bench: Bench, judge: Path, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
    """The reward model's value of each answer."""
    import torch

    from trainers.reward import load_reward

    model = load_reward(str(judge)).to(bench.device)
    found = []
    with torch.no_grad():
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt + answer], device=bench.device)
            places = torch.arange(ids.shape[1], device=bench.device)[None]
            found.append(float(model(ids, places, torch.zeros_like(ids), ids)[0, -1]))
    return found


def peft(bench: Bench, began: float) -> None:
    rows = []
    wanted = bench.options.methods.split(";") if bench.options.methods else list(METHODS)
    for name in wanted:
        block, rate = METHODS[name]
        fields = {"peft": block} if block is not None else {}
        report, last = bench.run(f"peft_{name}", 20, rate, bench.sft, trainer="sft", export=False, **fields)
        memory = f"{report.peak_memory / 2**30:.2f}" if report.peak_memory else "–"
        rows.append([
            name, f"{last['share']:.3%}", memory, f"{speed(last):,.0f}", f"{rate:g}", f"{last['validation']:.4f}"
        ])  # fmt: skip
        print(f"  {rows[-1]}", flush=True)
    rows.append(["(start)", "0%", "", "", "", f"{bench.held_out(bench.start):.4f}"])
    head = ["method", "trained", "peak memory, GiB", "positions/s", "rate", "held-out loss"]
    told(
        f"Parameter-efficient methods, SFT on the alpaca demos, {report.steps} steps", head, rows, bench.options, began
    )


def distill(bench: Bench, began: float) -> None:
    from trainers.prune.command import Prune, prune

    layers = json.loads((bench.start / "config.json").read_text())["num_hidden_layers"]
    half = bench.work / "half"
    shutil.rmtree(half, ignore_errors=True)
    for line in prune(str(bench.start), str(half), Prune(layers=layers // 2, even=True)):
        print(line)
    common: dict[str, Any] = {"start_from": str(half)}
    _, without = bench.run("distill_alone", 100, 5e-4, bench.sft, trainer="sft", **common)
    objective = {"teachers": {str(bench.start): 1.0}, "train_on": "responses", "hard": 0.3, "temperature": 1.0}
    taught, with_teacher = bench.run("distill", 100, 5e-4, bench.sft, trainer="distill", objective=objective, **common)
    rows = [
        ["teacher", f"{bench.held_out(bench.start):.4f}", ""],
        [f"student, {layers // 2} of {layers} blocks, before", f"{bench.held_out(half):.4f}", ""],
        ["the same, trained without a teacher", f"{without['validation']:.4f}", f"{speed(without):,.0f}"],
        ["the same, with the teacher", f"{with_teacher['validation']:.4f}", f"{speed(with_teacher):,.0f}"],
    ]
    head = ["model", "held-out loss", "positions/s"]
    told(f"Distillation into half the blocks, {taught.steps} steps each", head, rows, bench.options, began)


def prune_half(bench: Bench, began: float) -> None:
    from trainers.prune.command import Prune, prune

    config = json.loads((bench.start / "config.json").read_text())
    layers, ffn = config["num_hidden_layers"], config["intermediate_size"]
    small = bench.work / "pruned"
    shutil.rmtree(small, ignore_errors=True)
    cut = Prune(
        layers=layers * 3 // 5, intermediate_size=ffn * 23 // 48 // 8 * 8, importance="taylor",
        calibration=str(bench.sft), rows=16 if bench.cuda else 1, micro_rows=4 if bench.cuda else 1,
    )  # fmt: skip
    lines = list(prune(str(bench.start), str(small), cut))
    print("\n".join(lines))
    before, after = bench.held_out(bench.start), bench.held_out(small)
    objective = {"teachers": {str(bench.start): 1.0}, "train_on": "responses", "hard": 0.3}
    report, last = bench.run(
        "healed", 100, 5e-4, bench.sft, trainer="distill", objective=objective, start_from=str(small)
    )
    healed = last["validation"]
    times = timed(bench, [bench.start, Path(report.export)])
    names = ["before", f"after pruning ({lines[0]})", f"healed, {report.steps} steps of distillation"]
    rows = [[name, f"{math.exp(min(x, 80)):.2f}"] for name, x in zip(names, (before, after, healed), strict=True)]
    rows[0] += [f"{times[0][0] * 1e3:.1f}", f"{times[0][1] * 1e3:.0f}", ""]
    rows[1] += ["", "", ""]
    faster = " and ".join(f"{a / b:.2f}" for a, b in zip(*times, strict=True))
    rows[2] += [f"{times[1][0] * 1e3:.1f}", f"{times[1][1] * 1e3:.0f}", faster]
    size = "8 × 1,024" if bench.cuda else "1 × 128"
    head = ["model", "perplexity, held out", f"forward {size}, ms", "64 new tokens for 8 prompts, ms", "speed-up"]
    told("Structured pruning to half, healed", head, rows, bench.options, began)


def timed(bench: Bench, folders: list[Path]) -> list[tuple[float, float]]:
    """Per model the best of 7 interleaved rounds: (seconds of a forward pass, seconds of greedy decoding)."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bench.cuda else torch.float32
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(str(one), dtype=dtype).to(bench.device).eval() for one in folders
    ]
    ids = torch.randint(5, 200, (8, 1024) if bench.cuda else (1, 128), device=bench.device)
    prompts, new = ids[:, :32], 64 if bench.cuda else 4
    best = [[math.inf, math.inf] for _ in models]
    with torch.no_grad():
        for _ in range(7 if bench.cuda else 2):
            for number, lm in enumerate(models):
                for place, call in enumerate((
                    lambda lm=lm: lm(ids, use_cache=False),
                    lambda lm=lm: lm.generate(prompts, max_new_tokens=new, min_new_tokens=new, do_sample=False),
                )):  # fmt: skip
                    if bench.cuda:
                        torch.cuda.synchronize()
                    began = time.perf_counter()
                    call()
                    if bench.cuda:
                        torch.cuda.synchronize()
                    best[number][place] = min(best[number][place], time.perf_counter() - began)
    return [(one, two) for one, two in best]


COMMANDS = {"sft": sft, "reward": reward, "dpo": dpo, "peft": peft, "distill": distill, "prune": prune_half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", *COMMANDS])
    parser.add_argument("folder", nargs="?", help="prepare: where to write")
    parser.add_argument("--data", help="what prepare wrote")
    parser.add_argument("--model", required=True, help="transformers folder, .gguf file, folder of its pieces, or tiny")
    parser.add_argument("--work", default="runs/smollm2", help="folder of the runs")
    parser.add_argument("--steps", type=int, help="length of every run, in place of the command's own")
    parser.add_argument("--methods", help="peft: only these rows, separated by ;")
    parser.add_argument("--pieces", type=int, default=0, help="prepare: cut the .gguf file into so many pieces")
    parser.add_argument("--out", help="append the table to this file too")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options)
        return
    began = time.monotonic()
    bench = Bench(options)
    with bench.crew:
        COMMANDS[options.command](bench, began)


if __name__ == "__main__":
    main()
