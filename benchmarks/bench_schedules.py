"""Three claims about learning rates in continued pretraining, each as controlled runs, a table and a verdict.

    python benchmarks/bench_schedules.py --old runs/docs/packed --new runs/code/packed --steps 1000 --out runs/claims \\
        --model "{hidden_size: 384, layers: 6, heads: 6}" --set batch_rows=32 --set micro_rows=32

A model is pretrained on the old data (a short warmup, the stable rate, a decay over the last fifth of the steps) and
continued on the new data in several ways. Every continuation takes the same number of steps (--more), the same new
rows in the same order, and the same decay at its end; one thing differs at a time:

1. How long the decayed model is re-warmed does not change where it ends (Gupta et al. 2023, "Continual Pre-Training of
   Large Language Models: How to (re)warm your model?"). Beside it, the warmup of a first pretraining.
2. A higher peak rate in the continuation helps on the new data and costs on the old.
3. Re-warming a decayed model is worse than going on from the corner, before the decay. Two comparisons: straight from
   the corner (the same new rows; the decay's steps fewer in all), and after as many steps on the same old rows at the
   stable rate instead of the decay (the same old rows, the same new rows, the same number of steps).

The initial weights and the rows are the same wherever two runs are compared. The noise: three of the continuations are
run a second time with the new rows in another order; it is how much the differences between them change by that (root
mean square). A difference counts when it is more than twice the noise.

14 runs by workers that stay. OUT/claims.md has tables and verdicts, OUT/claims.html the learning curves too. Every
run is a training recipe through the call of `corpusmill train`; after a break the same command goes on with the runs
that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARMUPS = (0.0, 0.005, 0.01, 0.02)
"""Of the continuations, as shares of their steps."""
USUAL = 0.01
FACTORS = (0.5, 1.0, 2.0)
"""Peak rates of the continuations, in stable rates of the first run."""
DECAY = 0.2
"""Of every run, as a share of its steps."""
SETS = ("new", "old")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="packed rows of the first pretraining")
    parser.add_argument("--new", required=True, help="packed rows of the continued pretraining (the downstream data)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of the first pretraining")
    parser.add_argument("--more", type=int, help="steps of every continuation; default: two fifths of --steps")
    parser.add_argument("--rate", type=float, default=2e-3, help="stable rate of the first run")
    parser.add_argument("--first-warmup", type=float, default=0.1, help="share, of the first run's twin; 0: no twin")
    parser.add_argument("--model", default="{hidden_size: 128, layers: 4, heads: 4}", help="model settings, YAML")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="further recipe fields")
    options = parser.parse_args()
    from cluster import ray
    from trainers.workers import Crew

    with Crew() as crew:
        study = Study(options, crew)
        first(study, options)
        continued(study)
    ray.stop()
    text = told(study, options)
    Path(options.out, "claims.md").write_text(text)
    Path(options.out, "claims.html").write_text(page(study, text), encoding="utf-8")
    print(text)


class Study:
    """The runs below one folder, each done once."""

    def __init__(self, options: argparse.Namespace, crew: Any):
        from cluster.settings import assign

        self.out, self.crew = Path(options.out), crew
        self.old, self.new, self.rate, self.steps = options.old, options.new, options.rate, options.steps
        self.more = options.more or options.steps * 2 // 5
        self.common: dict[str, Any] = {"export": False}
        for change in options.set:
            assign(self.common, change)
        self.common["objective"] = {"validation_rows": 128} | self.common.get("objective", {})
        self.common["objective"]["held_out"] = {"old": options.old, "new": options.new}

    def run(self, name: str, steps: int, warmup: float, rate: float, **fields: Any) -> None:
        """One run of the usual shape, unless it is there."""
        from trainers.train import train

        folder = self.out / name
        if (folder / "done.json").is_file():
            return
        print(f"{name} …", file=sys.stderr, flush=True)
        schedule = {"shape": "wsd", "rate": rate, "warmup": warmup, "decay": round(DECAY * steps)}
        recipe = {**self.common, "steps": steps, "schedule": schedule, "validate_every": max(1, steps // 8), **fields}
        report = train(recipe, str(folder), crew=self.crew)
        kept = {"seconds": report.seconds, "parameters": report.parameters, "tokens": report.tokens}
        (folder / "done.json").write_text(json.dumps(kept))

    def then(
        self, name: str, run: str, at: str, *, rate: float = 1.0, warmup: float = 0.0, again: bool = False
    ) -> None:
        """A continuation on the new rows; `again`: in another order."""
        data = self.new
        if again:
            name, data = f"{name}-again", str(self.out / "new-shuffled")
            if not (self.out / "new-shuffled").is_dir():
                shuffled(self.new, data)
        go_on = {"run": str(self.out / run), "at": at}
        self.run(name, self.more, warmup, rate * self.rate, data=data, save=False, **{"continue": go_on})

    def curve(self, name: str, which: str) -> list[tuple[float, float]]:
        """(step, held-out loss) of a run."""
        from trainers.log import read_metrics

        key = f"validation_{which}"
        return [(line["step"], line[key]) for line in read_metrics(str(self.out / name)) if key in line]

    def end(self, name: str, which: str) -> float:
        """Held-out loss at the end of a run."""
        return self.curve(name, which)[-1][1]

    def twins(self) -> list[str]:
        """The runs that were run again with their rows in another order."""
        return sorted(path.name.removesuffix("-again") for path in self.out.glob("*-again"))

    def apart(self, one: str, other: str, which: str) -> list[float]:
        """How much higher one run ends than another: on the same rows, and once more where both were run again."""
        orders = ["", "-again"] if {one, other} <= {*self.twins()} else [""]
        return [self.end(one + order, which) - self.end(other + order, which) for order in orders]

    def noise(self, which: str) -> float:
        """Root mean square change of a difference between two runs when the rows of both come in another order."""
        apart = [self.apart(one, other, which) for one, other in itertools.combinations(self.twins(), 2)]
        return math.sqrt(sum((again - before) ** 2 for before, again in apart) / len(apart))


def shuffled(folder: str, out: str) -> None:
    """A packed data set with its training rows in another order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.schema import DATASET_FILE

    aside = Path(f"{out}.part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(folder, aside)
    about = json.loads((aside / DATASET_FILE).read_text())
    rows = pa.concat_tables([pq.read_table(aside / shard["path"]) for shard in about["shards"]])
    one = {"path": about["shards"][0]["path"], "rows": about["rows"], "tokens": about["tokens"]}
    order = np.random.default_rng(1).permutation(rows.num_rows)
    pq.write_table(rows.take(order), aside / one["path"], row_group_size=256)
    (aside / DATASET_FILE).write_text(json.dumps({**about, "shards": [one]}))
    aside.rename(out)


def first(study: Study, options: argparse.Namespace) -> None:
    """The pretrained model; one that got as many of the same rows without decay; one with another warmup."""
    import yaml

    model = yaml.safe_load(options.model)
    study.run("first", study.steps, USUAL, study.rate, data=study.old, model=model)
    decay = round(DECAY * study.steps)
    constant = {"shape": "constant", "rate": study.rate, "warmup": 0}
    go_on = {"run": str(study.out / "first"), "at": "corner", "rows": "next"}
    study.run("undecayed", decay, 0, study.rate, data=study.old, schedule=constant, **{"continue": go_on})
    if options.first_warmup:
        name = f"first-warmup-{options.first_warmup:g}"
        study.run(name, study.steps, options.first_warmup, study.rate, data=study.old, model=model, save=False)


def named(what: str, value: float, usual: float) -> str:
    """The continuation of the decayed model in which one thing has this value; the usual one serves all comparisons."""
    return "rewarmed" if value == usual else f"{what}-{value:g}"


def continued(study: Study) -> None:
    """All continuations."""
    for again in (False, True):
        study.then("rewarmed", "first", "final", warmup=USUAL, again=again)
        study.then("onward", "undecayed", "final", again=again)
        study.then(named("rate", FACTORS[-1], 1.0), "first", "final", warmup=USUAL, rate=FACTORS[-1], again=again)
    study.then("corner", "first", "corner")
    for warmup in WARMUPS:
        study.then(named("warmup", warmup, USUAL), "first", "final", warmup=warmup)
    for factor in FACTORS[:-1]:
        study.then(named("rate", factor, 1.0), "first", "final", warmup=USUAL, rate=factor)


def judged(differences: Sequence[float], noise: float, wanted: int) -> str:
    """A claim about the mean of differences: that it is positive (1), negative (-1) or none (0), against the noise."""
    mean = sum(differences) / len(differences)
    counts = abs(mean) > 2 * noise
    if wanted == 0:
        word = "does not hold" if counts else "holds"
    elif counts:
        word = "holds" if mean * wanted > 0 else "does not hold, the opposite does"
    else:
        word = "does not hold: no difference beyond the noise"
    each = " and ".join(f"{difference:+.4f}" for difference in differences)
    return f"**{word}** ({each}, {abs(mean) / max(noise, 1e-9):.1f} times the noise)"


def told(study: Study, options: argparse.Namespace) -> str:
    """Tables and verdicts, as Markdown."""
    noise = {which: study.noise(which) for which in SETS}
    decay, steps, more = round(DECAY * study.steps), study.steps, study.more

    def row(label: str, name: str) -> str:
        return f"| {label} | {' | '.join(f'{study.end(name, which):.4f}' for which in SETS)} |"

    def verdict(what: str, one: str, other: str, which: str, wanted: int) -> str:
        return f"- {which} data, {what}: {judged(study.apart(one, other, which), noise[which], wanted)}"

    done = {path.parent.name: json.loads(path.read_text()) for path in sorted(study.out.glob("*/done.json"))}
    seconds = sum(one["seconds"] for one in done.values())
    size, per_step = done["first"]["parameters"], done["first"]["tokens"] / steps
    about = (
        f"A model of {size:,} parameters: {steps} steps of {per_step:,.0f} tokens on the old data at a stable rate of "
        f"{study.rate:g}, then {more} on the new data; the last {DECAY:.0%} of both are the decay. {len(done)} runs in "
        f"{seconds:.0f} s."
    )
    measured = (
        "Held-out losses in nats per token. Three runs were run again with the new rows in another order: the "
        f"differences between them changed (root mean square) by {noise['new']:.4f} on the new data, "
        f"{noise['old']:.4f} on the old: the noise. A difference counts from twice that on; where there are two, the "
        "second is that of the other order."
    )
    lines = ["# Three claims about learning rates in continued pretraining", "", about, measured, ""]
    lines += ["| not continued | new data | old data |", "|---|---|---|"]
    lines += [row("decayed", "first"), row("as many steps, no decay", "undecayed"), ""]
    lines += ["## 1. The length of the warmup does not change the end", ""]
    lines += ["| warmup of the re-warming | new data | old data |", "|---|---|---|"]
    warmed = [named("warmup", warmup, USUAL) for warmup in WARMUPS]
    lines += [row(f"{w:.1%}, {round(w * more)} steps", name) for w, name in zip(WARMUPS, warmed, strict=True)] + [""]
    for which in SETS:
        ends = {study.end(name, which): name for name in warmed}
        lines.append(verdict("highest less lowest", ends[max(ends)], ends[min(ends)], which, 0))
    if options.first_warmup:
        twin = f"first-warmup-{options.first_warmup:g}"
        lines += ["", "| warmup of a first pretraining | new data | old data |", "|---|---|---|"]
        lines += [
            row(f"{w:.1%}, {round(w * steps)} steps", n) for w, n in ((USUAL, "first"), (options.first_warmup, twin))
        ]
        lines += ["", verdict("longer less shorter", twin, "first", "old", 0)]
    lines += ["", "## 2. A higher peak rate helps on the new data and costs on the old", ""]
    lines += [f"| peak rate, warmup {USUAL:.0%} | new data | old data |", "|---|---|---|"]
    rated = [named("rate", factor, 1.0) for factor in FACTORS]
    lines += [row(f"{factor * study.rate:g}", name) for factor, name in zip(FACTORS, rated, strict=True)] + [""]
    for lower, higher in itertools.pairwise(rated):
        for which, wanted in (("new", -1), ("old", 1)):
            lines.append(verdict(f"{higher} less {lower}", higher, lower, which, wanted))
    lines += ["", "## 3. Re-warming a decayed model is worse than going on from the corner", ""]
    lines += ["| start | old steps | new steps | new data | old data |", "|---|---|---|---|---|"]
    lines += [row(f"decayed, re-warmed over {USUAL:.0%} | {steps} | {more}", "rewarmed")]
    lines += [row(f"the same old rows at the stable rate instead of the decay | {steps} | {more}", "onward")]
    lines += [row(f"the corner | {steps - decay} | {more}", "corner"), ""]
    lines += [verdict("same rows and steps, re-warmed less not decayed", "rewarmed", "onward", w, 1) for w in SETS]
    lines += [verdict("same new rows, re-warmed less corner", "rewarmed", "corner", w, 1) for w in SETS]
    return "\n".join(lines) + "\n"


def page(study: Study, text: str) -> str:
    """The learning curves and the tables, as HTML."""
    from cluster.page import document
    from trainers.page import plot

    warmups = {f"{warmup:.1%}": named("warmup", warmup, USUAL) for warmup in WARMUPS}
    rates = {f"{factor * study.rate:g}": named("rate", factor, 1.0) for factor in FACTORS}
    starts = {"re-warmed": "rewarmed", "stable rate": "onward", "corner": "corner"}
    drawn = ""
    for title, names in (("warmup", warmups), ("peak rate", rates), ("start", starts)):
        for which in SETS:
            curves = {label: study.curve(name, which) for label, name in names.items()}
            drawn += plot(f"{title}: held-out loss of the {which} data (nats per token)", curves)
    return document("three claims about learning rates", f"<h1>Three claims</h1>{drawn}<pre>{text}</pre>")


if __name__ == "__main__":
    main()
