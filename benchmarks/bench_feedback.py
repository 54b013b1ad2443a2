"""Choosing among answers and judging pairs, on public answers and replies; no model is asked.

    python benchmarks/bench_feedback.py select      ../shared/data/math: GSM8K, four models' solutions to each problem
    python benchmarks/bench_feedback.py judges      ../shared/data/posttrain: LLMBar, judges' raw replies in both orders

`select` trains an outcome verifier on GSM8K's training solutions, each set against a spoilt copy of itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data"
METHODS = ("majority", "outcome", "weighted", "oracle")


def select(data: Path, examples: int) -> None:
    """Accuracy against the number of answers, and what they cost."""
    from trainers.answers import read_examples
    from trainers.feedback.select import against_n, candidates_of
    from trainers.feedback.verifier import from_right_solutions

    began = time.perf_counter()
    train = list(read_examples(str(data / "math/gsm8k_train.jsonl.xz")))[:examples]
    verifier = from_right_solutions([row["question"] for row in train], [row["answer"] for row in train])
    learned = time.perf_counter() - began
    problems, alone = [], []
    for row in read_examples(str(data / "math/gsm8k_test_with_model_solutions.jsonl.xz")):
        models = list(row["model_solutions"].values())
        texts = [model["solution"] for model in models]
        raw = {"solutions": texts, "right": [model["is_correct"] for model in models]}
        raw |= {
            "scores": [verifier(row["question"], text) for text in texts],
            "tokens": [len(x.split()) for x in texts],
        }
        problems.append(candidates_of(raw))
        alone.append([model["is_correct"] for model in models])
    lines = against_n(problems, METHODS, (1, 2, 3, 4))
    found = {(line.method, line.n): line for line in lines}
    print(f"{len(problems)} problems, 4 solutions each; verifier: {len(train)} right solutions, {learned:.1f} s\n")
    print(f"| answers | {' | '.join(METHODS)} | words read |\n|{'---|' * (len(METHODS) + 2)}")
    for n in (1, 2, 3, 4):
        shares = " | ".join(f"{100 * found[method, n].accuracy:.1f} %" for method in METHODS)
        print(f"| {n} | {shares} | {found['majority', n].tokens:,.0f} |")
    each = ", ".join(f"{100 * sum(model) / len(model):.1f} %" for model in zip(*alone, strict=True))
    print(f"\nthe four models alone: {each}")


def judges(data: Path) -> None:
    """Accuracy, agreement of both orders, accuracy where they agree, by judge and part of LLMBar."""
    from trainers.answers import read_examples
    from trainers.feedback.judge import Judgement, report, verdict

    rows = list(read_examples(str(data / "posttrain/llmbar_pairs_with_judge_outputs.jsonl.xz")))
    names = sorted({name for row in rows for name in row["judges"]})
    labels = ("Output (a)", "Output (b)")
    print("| judge | part | pairs | accuracy | agreement | accuracy where both agree | prefers the first by |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        for part in ("Natural", "Adversarial", "Processed"):
            found, gold = [], []
            for row in rows:
                if part in row["subset"] and name in row["judges"]:
                    said, mode = row["judges"][name], "reasoning" if "CoT" in name else "answer"
                    straight = verdict(said["swap = False"]["text"], labels, mode)  # type: ignore[arg-type]
                    swapped = verdict(said["swap = True"]["text"], labels, mode)  # type: ignore[arg-type]
                    found.append(Judgement(straight, None if swapped is None else 1 - swapped))
                    gold.append(row["label"] - 1)
            if found:
                r = report(found, gold)
                shares = (r.accuracy, r.agreement, r.accuracy_agreed, r.position_bias)
                told = " | ".join("" if share is None else f"{100 * share:.1f} %" for share in shares)
                print(f"| {name} | {part} | {len(found)} | {told} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("select", "judges"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--examples", type=int, default=7473, help="training solutions of the verifier")
    args = parser.parse_args()
    if args.what == "select":
        select(args.data, args.examples)
    else:
        judges(args.data)
    print(json.dumps(vars(args), default=str), file=sys.stderr)


if __name__ == "__main__":
    main()
