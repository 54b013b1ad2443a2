"""The front door: one command, its verbs, each imported only when it is called.

Exit codes: 0 when everything asked for is there; 1 for a run that failed; 2 for a recipe that cannot run; 130 or 143
when it was interrupted (Ctrl-C, SIGTERM): the same command then goes on.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

# packages of the extra [train]: a corpus-only installation is told so; and what `feedback` can do, without loading it
TRAIN = ("torch", "deepspeed", "transformers", "safetensors", "tensorboard", "scipy", "peft")
FEEDBACK = ("judge", "select", "solve", "rlaif", "spin", "self_rewarding", "self_instruct", "evol_instruct")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and call the verb. The exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "call"):
        parser.print_help()
        return 2
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    sys.path.insert(0, os.getcwd())  # a user's own rules lie beside the recipe
    _hush()
    from cluster.errors import CorpusmillError

    try:
        return int(options.call(options) or 0)
    except CorpusmillError as error:
        print(f"corpusmill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("corpusmill: interrupted; the same command goes on where it was", file=sys.stderr)
        return 128 + (_ended_by[-1] if _ended_by else signal.SIGINT)
    except BrokenPipeError:
        # the reader of our output went away (| head): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # a file of the user's that is absent, a folder, forbidden, or a disk that is full: the system's own words
        where = error.filename
        if where is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            where = getattr(options, "out", None)
        if where is None:
            raise
        print(f"corpusmill: {where}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAIN:
            raise
        wanted = f"this needs the package {package}, which is not installed: pip install 'corpusmill[train]'"
        print(f"corpusmill: {wanted}", file=sys.stderr)
        return 2
    except Exception as error:
        from cluster import storage

        if (told := storage.s3_error(error)) is None:
            raise
        print(f"corpusmill: {told}", file=sys.stderr)
        return 1


_ended_by: list[int] = []


def _hush() -> None:
    """No bars and warnings of libraries among what commands print; what matters reaches the user as an error."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("DeepSpeed").disabled = True  # transformers imports it; training is done by workers


def _terminate(number: int, _: object) -> None:
    """SIGTERM, from `docker stop`, Kubernetes or systemd, is Ctrl-C with an exit code of its own."""
    _ended_by.append(number)  # Ray forgets which exception a handler raised
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    from cluster.options import kube_options
    from trainers.scaling.options import scaling_options

    parser = argparse.ArgumentParser(
        prog="corpusmill", description="From a raw web crawl to a trained, aligned language model."
    )
    verbs = parser.add_subparsers(metavar="COMMAND", title="commands")

    def verb(name: str, call: object, summary: str, example: str = "") -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=summary, description=summary, epilog=example and f"example: {example}")
        made.set_defaults(call=call)
        return made

    def recipe_options(made: argparse.ArgumentParser) -> None:
        made.add_argument("recipe", help="a YAML file, see recipes/")
        made.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments",
            help="change a setting: filters.gopher_quality.min_words=80, workers=4, …",
        )  # fmt: skip

    made = verb("plan", _plan, "show what any recipe would do, and refuse what cannot work, without starting anything")
    recipe_options(made)
    made.add_argument("--out", help="corpus recipes: say which stages are already finished in this run's folder")

    made = verb("run", _run, "execute a corpus recipe; the same command again continues")
    recipe_options(made)
    made.add_argument("--out", required=True, help="the run's folder, local or s3://")
    made.add_argument("--workers", help="processes (overrides the recipe): auto, a number, 0 for none")
    made.add_argument("--quiet", action="store_true", help="print nothing but errors")

    made = verb(
        "extract", _extract, "the main text of a file, or of an archive's records, and what was decided about each",
        "corpusmill extract crawl/00000.warc.gz --url https://example.org/ > page.txt",
    )  # fmt: skip
    made.add_argument(
        "path", metavar="file", help="HTML, PDF, DOCX, ODT, EPUB, text, WARC, WET or ARC; local, s3:// or http(s)://"
    )
    made.add_argument("--url", help="of a page: where it comes from; of an archive: only the records of this URL")
    made.add_argument(
        "--type", dest="content_type", help="the Content-Type that a server stated: 'text/html; charset=gb2312'"
    )
    made.add_argument("--engine", choices=["corpusmill", "trafilatura", "resiliparse"], default="corpusmill")
    made.add_argument(
        "--json", action="store_true", dest="as_json", help="a line of JSON per document, with all that was decided"
    )

    made = verb("why", _why, "what became of a document: the step and reason that removed it, or its packed row")
    made.add_argument("run", help="a run's folder")
    made.add_argument("document", help="URL, or doc_id in hexadecimal")

    made = verb("whatif", _whatif, "what other thresholds would keep, from stored scores (keep_scores: true)")
    made.add_argument("run", help="a run's folder")
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="assignments", required=True)

    made = verb("report", _report, "write a run's report.html anew", "corpusmill report runs/mine")
    made.add_argument("run", help="a folder that `run` or `train` wrote")

    made = verb("compare", _compare, "two corpus runs: settings, counts, reasons that differ, documents of one alone")
    made.add_argument("first", help="a run's folder")
    made.add_argument("second", help="another one's")

    made = verb("steps", _steps, "list the steps and training blocks that recipes can name; with a name, its settings")
    made.add_argument("name", nargs="?", help="filters.gopher_quality, train, train.engine, trainer.ppo, …")

    made = verb("train", _train, "train a model by a training recipe; the same command again continues")
    recipe_options(made)
    made.add_argument("--out", required=True, help="the training run's folder")

    made = verb(
        "check", _check, "whether this machine, or the cluster of RAY_ADDRESS, can run recipes: packages, disk, Ray",
        "corpusmill check --out s3://bucket/run",
    )  # fmt: skip
    made.add_argument(
        "--out", default=".", help="folder that runs will be written to, local or s3://; default: this one"
    )

    made = verb(
        "submit", _submit, "execute a recipe as a job of a Ray cluster, with its log here and its exit code",
        "corpusmill submit mine.yaml --address http://HEAD:8265 --out s3://bucket/run",
    )  # fmt: skip
    recipe_options(made)
    made.add_argument("--address", required=True, help="the cluster's dashboard, http://HEAD:8265")
    made.add_argument("--out", required=True, help="the run's folder: s3://, or an absolute path that all nodes share")
    made.add_argument("--working-dir", help="uploaded, the job's current folder; default: this one, without runs/")

    made = verb(
        "kube", _kube, "print manifests for KubeRay: a RayJob with its cluster that executes a recipe",
        "corpusmill kube mine.yaml --out s3://bucket/run --image registry/corpusmill | kubectl apply -f -",
    )  # fmt: skip
    recipe_options(made)
    kube_options(made)

    made = verb("answers", _answers, "tokenise and pack judged answers (pairs, rankings, labels) for `train`")
    made.add_argument("files", nargs="+", help="JSONL (plain, gz, xz, zst) or Parquet: prompt, chosen, rejected, …")
    made.add_argument("--tokenizer", required=True, help="folder that AutoTokenizer opens; its chat template is used")
    made.add_argument("--out", required=True, help="folder of the data set, for `data:` of a training recipe")
    made.add_argument("--seq-len", type=int, default=2048, help="tokens per row; all answers of a prompt must fit")
    made.add_argument("--validation", type=float, default=0.05, help="share of prompts to hold out")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--reference", help="model folder: store its log-probabilities, for reference: stored")

    made = verb("teach", _teach, "store a teacher's likeliest next tokens beside packed data, for trainer: distill")
    made.add_argument("data", help="packed/ folder of a pipeline run")
    made.add_argument("teacher", help="a transformers folder with the same tokenizer")
    made.add_argument("--out", required=True, help="folder of the new data set, for `data:` of a training recipe")
    made.add_argument("--k", type=int, default=32, help="tokens per position; all others are stored as one sum")
    made.add_argument("--temperature", type=float, default=1.0, help="must be that of the training recipe")

    made = verb("seen", _seen, "which documents a checkpoint has trained on; with a document, how often and where")
    made.add_argument("checkpoint", help="a folder checkpoints/step-…, or a training run: its newest one")
    made.add_argument(
        "document", nargs="?", help="doc_id in hexadecimal, as `why` prints it; of a run: also which checkpoints saw it"
    )
    made.add_argument("--out", help="write all documents seen to this Parquet file")

    made = verb("evaluate", _evaluate, "a model on task files (MMLU, GSM8K, HumanEval, …): choices, problems, programs")
    made.add_argument("model", help="a transformers folder, as `train` and `export` write it")
    made.add_argument("tasks", nargs="+", help="JSONL files (plain, gz, xz, zst), or folders with train and test")
    made.add_argument("--shots", type=int, default=0, help="worked examples of the task before each item")
    made.add_argument("--limit", type=int, default=0, help="only so many items of each task")
    made.add_argument("--tokens", type=int, default=256, help="longest answer that the model writes")
    made.add_argument("--samples", type=int, default=1, help="answers per item: pass@1 and pass@SAMPLES")
    made.add_argument("--temperature", type=float, help="of the answers; default 0, or 0.8 with several samples")
    made.add_argument("--out", help="write the figures here (JSON)")

    made = verb("export", _export, "a training run's checkpoint as a transformers folder")
    made.add_argument("checkpoint", help="a folder checkpoints/step-…, or a run (its newest one), local or s3://")
    made.add_argument("target")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")

    made = verb("grow", _grow, "a larger model with the same outputs: wider, deeper, or with experts")
    made.add_argument("source", help="a transformers folder")
    made.add_argument("target")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="assignments", required=True)

    made = verb("prune", _prune, "a smaller model: fewer layers, heads, channels, dimensions, or weights that are 0")
    made.add_argument("source", help="a transformers folder")
    made.add_argument("target")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="assignments", required=True)

    made = verb("scale", _scale, "scaling laws: fit a table of runs, plan a run, or measure a law by small runs")
    scaling_options(made)

    made = verb("feedback", _feedback, "judge, choose among or synthesise answers, and loops that learn from them")
    made.add_argument("action", choices=FEEDBACK)
    recipe_options(made)
    made.add_argument("--out", required=True, help="folder; the same command again continues")

    made = verb("demo", _demo, "crawl Python's documentation, make a corpus of it, train a small model on it")
    made.add_argument("--out", default="runs/demo")
    return parser


def _plan(options: argparse.Namespace) -> int:
    from cluster.settings import command_for, read_yaml

    command = command_for(read_yaml(options.recipe))
    if command != "run":
        from trainers import plan as training

        print("\n".join(training.told(options.recipe, command, options.assignments)))
        return 0
    from pipeline import recipe
    from pipeline.plan import told

    print("\n".join(told(recipe.load(options.recipe, options.assignments), options.out)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from pipeline import recipe
    from pipeline.progress import Console
    from pipeline.report import funnel
    from pipeline.run import run

    assignments = [*options.assignments, *([f"workers={options.workers}"] if options.workers is not None else [])]
    made = recipe.load(options.recipe, assignments)
    console = Console(quiet=options.quiet)
    report = run(made, options.out, console=console, recipe_name=options.recipe)
    if not options.quiet:
        print("\n".join(["", *funnel(report.stages), ""]))
        for name, path in {**report.outputs, "report": f"{options.out.rstrip('/')}/report.html"}.items():
            print(f"{name:<10} {path}")
    return 0


def _extract(options: argparse.Namespace) -> int:
    from pipeline.extract.command import extract_file

    return 0 if extract_file(**_given(options)) else 1


def _why(options: argparse.Namespace) -> int:
    from pipeline.why import why

    lines, found = why(options.run, options.document)
    print("\n".join(lines))
    return 0 if found else 1


def _whatif(options: argparse.Namespace) -> int:
    from pipeline.whatif import whatif

    print("\n".join(whatif(options.run, options.assignments)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from pipeline.compare import compare

    print("\n".join(compare(options.first, options.second)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from cluster import storage
    from pipeline import html
    from trainers import chain

    run = storage.absolute(options.run)
    side = html if storage.exists(storage.join(run, "run.json")) else chain
    print(f"report     {side.rewrite_report(run)}")
    return 0


def _steps(options: argparse.Namespace) -> int:
    from cluster.settings import told as settings_told
    from pipeline import recipe
    from trainers import plan as training

    if options.name is None:
        for name, summary in {**recipe.step_docs(), **training.part_docs()}.items():
            print(f"{name:<28} {summary}")
        return 0
    if options.name in training.PARTS:
        block = training.settings_of(options.name)
        print(f"{options.name}\n\n{(block.__doc__ or '').strip()}\n")
        fields = block.model_fields
    else:
        step = recipe.step_class(options.name, "steps", training.PARTS)
        print(f"{options.name}: {step.takes} → {step.gives}\n\n{(step.__doc__ or '').strip()}\n")
        fields = step.model_fields
    print("\n".join(settings_told(fields)))
    return 0


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    from trainers.chain import is_chain, load_chain, train_chain
    from trainers.page import rate_found
    from trainers.recipe import load_recipe
    from trainers.train import train

    if is_chain(options.recipe):
        stages = load_chain(options.recipe, options.assignments, options.out)
        train_chain(stages, options.out, Console())
        print(f"report     {options.out}/report.html")
        return 0
    report = train(load_recipe(options.recipe, options.assignments), options.out, console=Console())
    print(f"loss {report.first_loss:.4f} → {report.last_loss:.4f} in {report.steps} steps, {report.tokens:,} tokens")
    if report.checkpoint:
        print(f"checkpoint {report.checkpoint}")
    if (rate := rate_found(options.out)) is not None:
        print(f"rate       {rate:.2e} is suggested, a tenth of that with the lowest smoothed loss")
    if report.export:
        print(f"model      {report.export}")
    print(f"report     {options.out}/report.html")
    return 0


def _check(options: argparse.Namespace) -> int:
    from cluster.preflight import findings
    from pipeline.kernels.proof import proof

    wrong = 0
    for finding in findings(options.out, {"kernels": proof}):
        print(finding, flush=True)
        wrong += finding.level == "wrong"
    return 1 if wrong else 0


def _submit(options: argparse.Namespace) -> int:
    from cluster.submit import submit

    _refuse(options.recipe, options.assignments)
    return submit(**_given(options))


def _kube(options: argparse.Namespace) -> int:
    from cluster.kuberay import manifests

    _refuse(options.recipe, options.assignments)
    print(manifests(**_given(options)), end="")
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a verb as arguments of its function."""
    return {name: value for name, value in vars(options).items() if name != "call"}


def _refuse(path: str, assignments: Sequence[str]) -> None:
    """Refuse a recipe for elsewhere whose settings are wrong; whether its input is there, only the nodes can tell."""
    from cluster.settings import command_for, read_yaml
    from pipeline import recipe
    from trainers import chain
    from trainers.recipe import load_recipe

    if (verb := command_for(read_yaml(path))) in ("run", "train"):
        (recipe.load if verb == "run" else chain.load_chain if chain.is_chain(path) else load_recipe)(path, assignments)


def _answers(options: argparse.Namespace) -> int:
    from trainers.answers import write_answers

    about = write_answers(
        options.files, options.tokenizer, options.out, seq_len=options.seq_len, validation=options.validation,
        seed=options.seed,
    )  # fmt: skip
    if options.reference:
        from trainers.preference import write_reference

        write_reference(options.out, options.reference, options.out)
    print(f"{about['prompts']:,} prompts with {about['documents']:,} answers in {about['rows']:,} rows for training")
    for reason, count in about["refused"].items():
        print(f"refused {count:,}: {reason} (first: {about['refused_first'][reason]})")
    return 0


def _teach(options: argparse.Namespace) -> int:
    from trainers.teach import write_teacher

    write_teacher(options.data, options.teacher, options.out, k=options.k, temperature=options.temperature)
    print(f"data       {options.out}")
    return 0


def _seen(options: argparse.Namespace) -> int:
    from pipeline.pack import lineage
    from trainers.lineage import readings

    print("\n".join(lineage.told(readings(options.checkpoint), options.document, options.out)))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from trainers.evaluate.command import evaluate

    figures = evaluate(
        options.model, options.tasks, shots=options.shots, limit=options.limit, tokens=options.tokens,
        samples=options.samples, temperature=options.temperature,
    )  # fmt: skip
    for name, value in figures.items():
        print(f"{name:<40} {value:.4f}")
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _export(options: argparse.Namespace) -> int:
    from trainers.export import export_checkpoint

    print(f"model      {export_checkpoint(options.checkpoint, options.target, options.dtype)}")
    return 0


def _grow(options: argparse.Namespace) -> int:
    from cluster.settings import assigned
    from trainers.scaling.growth import Growth, grow_folder

    grow_folder(options.source, options.target, assigned(Growth, options.assignments, "grow"))
    print(f"model      {options.target}")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from cluster.settings import assigned
    from trainers.prune.command import Prune, prune

    print("\n".join(prune(options.source, options.target, assigned(Prune, options.assignments, "prune"))))
    return 0


def _scale(options: argparse.Namespace) -> int:
    from trainers.scaling.told import scale

    return scale(options)


def _feedback(options: argparse.Namespace) -> int:
    from trainers.feedback.command import feedback

    for line in feedback(options.action, options.recipe, options.out, options.assignments):
        print(line)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from corpusmill_demo import demo

    return demo(options.out)


if __name__ == "__main__":
    sys.exit(main())
