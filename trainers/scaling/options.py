"""The options of `corpusmill scale`, whose actions share them."""

from __future__ import annotations

import argparse


def scaling_options(made: argparse.ArgumentParser) -> None:
    """Add them to the verb's parser."""
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.epilog = """\
corpusmill scale fit runs.csv --out law.json          the law of your runs, and what they leave open
corpusmill scale plan law.json --flops 1e21           the best size and length for a budget
corpusmill scale fit runs.csv --where 'parameters<1e9' --tied --out small.json
corpusmill scale compare small.json runs.csv          what small runs say of large ones, against their losses
corpusmill scale repeated runs.csv --law c4           the worth of repeated tokens
corpusmill scale emergence tasks.csv models.csv --out page.html"""
    made.add_argument(
        "action",
        choices=["fit", "isoflop", "kaplan", "repeated", "plan", "compare", "sweep", "shape", "emergence"],
        help="fit L(N, D); isoflop: best N per compute; kaplan: laws of one variable; repeated: law of repeated data; "
        "plan, compare: by a fitted law; sweep, shape: train small models; emergence: sudden rises of tasks",
    )
    made.add_argument(
        "file",
        help="CSV, JSONL or Parquet of runs; plan, compare: what fit wrote, or c4 (published); sweep, shape: a recipe; "
        "emergence: or a folder of training runs",
    )
    made.add_argument("runs", nargs="?", help="compare: a table of runs; emergence: a table to join, with the scale")
    made.add_argument("--out", help="write the answer here (JSON); sweep, shape: folder of the runs; emergence: a page")
    made.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE",
        help="only these runs of a table; also !=, <, <=, >, >= (in quotes)",
    )  # fmt: skip
    made.add_argument(
        "--column", action="append", default=[], metavar="KEY=NAME",
        help="which column holds parameters, tokens, flops, loss, unique_tokens or epochs, if its name does not tell",
    )  # fmt: skip
    made.add_argument("--drop-worst", type=int, default=0, help="fit: leave out so many runs with the highest loss")
    made.add_argument("--tied", action="store_true", help="fit: alpha = beta, which few runs determine better")
    made.add_argument("--method", default="akima", help="isoflop: akima or parabola through each curve")
    made.add_argument("--law", help="repeated: the law for single epochs, as fit wrote it, or c4; else fitted as well")
    made.add_argument("--scale", metavar="COLUMN", help="emergence: the scale axis; default flops")
    made.add_argument("--task", action="append", default=[], metavar="COLUMN", help="emergence: only this task")
    made.add_argument("--flops", type=float, help="plan: the best size and length for this compute")
    made.add_argument("--parameters", type=float, help="plan: with --tokens, the loss of such a run")
    made.add_argument("--tokens", type=float)
    made.add_argument("--unique-tokens", type=float, help="plan: how many tokens there are, if they are repeated")
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments")
