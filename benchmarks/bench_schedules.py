"""Three claims about learning rates in continued pretraining, each as small runs and a table.

    python benchmarks/bench_schedules.py --old runs/a/packed --new runs/b/packed --steps 400 --out runs/claims

On one GPU, 16 runs of 4M tokens each, a worker that stays, nothing compiled:

    python benchmarks/bench_schedules.py --old runs/docs/packed --new runs/code/packed --steps 120 --out runs/claims \
        --model "{hidden_size: 256, layers: 4, heads: 4}" --set batch_rows=16 --set micro_rows=16 --set keep=1

1. The length of the warmup does not change where a run ends.
2. A higher rate in pretraining helps the downstream task: runs at several rates, each continued on the new data.
3. Re-warming a decayed model is worse than going on from the corner, before the decay.

Losses are held-out ones of the two data sets, ten times in a run. OUT/claims.md has the tables, OUT/claims.html the
learning curves beside them. Every run is a training recipe through the call of `corpusmill train`;
finished runs below --out are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="packed rows of the first pretraining")
    parser.add_argument("--new", required=True, help="packed rows of the continued pretraining (the downstream data)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of the first pretraining")
    parser.add_argument("--more", type=int, help="steps on the new data; default: a quarter")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--model", default="{hidden_size: 128, layers: 4, heads: 4}", help="model settings, YAML")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="further recipe fields")
    options = parser.parse_args()
    import yaml

    from cluster import ray
    from cluster.page import document
    from cluster.settings import assign
    from trainers.page import plot
    from trainers.workers import Crew

    often = max(1, options.steps // 10)
    common: dict[str, Any] = {
        "export": False,
        "validate_every": often,
        "objective": {"held_out": {"old": options.old, "new": options.new}},
    }
    for change in options.set:
        assign(common, change)
    more = options.more or options.steps // 4
    model = yaml.safe_load(options.model)
    with Crew() as crew:
        study = Study(options.out, common, crew)

        def first(name: str, *, rate: float = options.rate, warmup: int = options.steps // 20) -> str:
            schedule = {"shape": "wsd", "rate": rate, "warmup": warmup, "decay": 0.2}
            study.run(name, data=options.old, model=model, steps=options.steps, schedule=schedule)
            return name

        def then(name: str, run: str, at: str, rate: float, warmup: int, steps: int = more) -> None:
            schedule = {"shape": "wsd", "rate": rate, "warmup": warmup, "decay": 0.5}
            go_on = {"run": str(Path(options.out, run)), "at": at}
            study.run(name, data=options.new, steps=steps, schedule=schedule, **{"continue": go_on})

        lines = ["## 1. Warmup", "", "| warmup steps | old data | new data |", "|---|---|---|"]
        usual = options.steps // 20
        for warmup in sorted({0, max(1, options.steps // 100), usual, options.steps // 5}):
            # the run with the usual warmup is also the second table's
            name = first(f"rate-{options.rate:g}" if warmup == usual else f"warmup-{warmup}", warmup=warmup)
            study.show("1. Warmup: held-out loss of the old data", f"{warmup} steps", name, "old")
            lines.append(f"| {warmup} | {study.cell(name, 'old')} | {study.cell(name, 'new')} |")
        lines += ["", "## 2. Rate", "", "| rate | old data, first run | new data, first run | new data, continued |"]
        lines += ["|---|---|---|---|"]
        for factor in (0.25, 0.5, 1, 2):
            rate = options.rate * factor
            name = first(f"rate-{rate:g}", rate=rate)
            # the same rate on the new data for all: only the start differs
            then(f"rate-{rate:g}-continued", name, "corner", options.rate, 0)
            study.show(
                "2. Rate of the first run: the new data, continued", f"{rate:g}", f"rate-{rate:g}-continued", "new"
            )
            cells = [study.cell(name, "old"), study.cell(name, "new"), study.cell(f"rate-{rate:g}-continued", "new")]
            lines.append(f"| {rate:g} | {' | '.join(cells)} |")
        lines += ["", "## 3. Corner or re-warmed", ""]
        lines += ["| start | warmup | steps on new data | new data | old data (forgetting) |", "|---|---|---|---|---|"]
        base = f"rate-{options.rate:g}"
        # the decayed model had the decay's steps more: the corner with as many new rows, and with as many steps in all
        decay = round(0.2 * options.steps)
        ways = [("corner", 0, more), ("corner", 0, more + decay)]
        ways += [("final", warmup, more) for warmup in sorted({0, max(1, more // 10), max(1, more // 3)})]
        for start, warmup, steps in ways:
            name = f"from-{start}-{warmup}-{steps}"
            then(name, base, start, options.rate, warmup, steps)
            study.show("3. Corner or re-warmed: the new data", f"{start}, warmup {warmup}, {steps} steps", name, "new")
            lines.append(f"| {start} | {warmup} | {steps} | {study.cell(name, 'new')} | {study.cell(name, 'old')} |")
    ray.stop()
    table = "\n".join(lines) + "\n"
    Path(options.out, "claims.md").write_text(table)
    drawn = "".join(plot(f"{title} (nats per token)", curves) for title, curves in study.curves.items())
    page = document("three claims about learning rates", f"<h1>Three claims</h1>{drawn}<pre>{table}</pre>")
    Path(options.out, "claims.html").write_text(page, encoding="utf-8")
    print(table)


class Study:
    """The runs below one folder, each done once."""

    def __init__(self, out: str, common: dict[str, Any], crew: Any):
        self.out, self.common, self.crew = out, common, crew
        self.curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        """Plot → label → (step, held-out loss)."""

    def run(self, name: str, **fields: Any) -> None:
        from trainers.train import train

        folder = Path(self.out, name)
        if (folder / "done.json").is_file():
            return
        print(f"{name} …", file=sys.stderr, flush=True)
        report = train({**self.common, **fields}, str(folder), crew=self.crew)
        (folder / "done.json").write_text(json.dumps({"last_loss": report.last_loss}))

    def measured(self, name: str, which: str) -> list[tuple[float, float]]:
        """(step, held-out loss) of a run."""
        from trainers.log import read_metrics

        key = f"validation_{which}"
        return [(line["step"], line[key]) for line in read_metrics(str(Path(self.out, name))) if key in line]

    def show(self, title: str, label: str, name: str, which: str) -> None:
        """Put a run's curve into a plot."""
        self.curves.setdefault(title, {})[label] = self.measured(name, which)

    def cell(self, name: str, which: str) -> str:
        """Held-out loss at the end of a run."""
        return f"{self.measured(name, which)[-1][1]:.4f}"


if __name__ == "__main__":
    main()
