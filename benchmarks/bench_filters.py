"""Speed of the filters on one core, beside datatrove's and fastText's on the same documents, in one interleaved run.

    python benchmarks/bench_filters.py [--documents 1200] [--rounds 3] [--with-datatrove]

Documents: the real ones of ../shared/data, else this Python's own documentation as text. CPU time of this thread is
taken, the best of the rounds; kernels are compiled before. datatrove runs as it ships (spaCy words) and with its
words split at white space; it needs an environment with datatrove and spaCy.
"""

# ruff: noqa: E402 (the script makes its imports findable first)

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from texts import DATA, batch_of, real_texts

from pipeline.clean.pii import PII
from pipeline.filters.bad_words import BadWords
from pipeline.filters.c4 import C4
from pipeline.filters.chinese import Chinese
from pipeline.filters.code import Code
from pipeline.filters.contamination import Contamination
from pipeline.filters.fineweb import FineWeb
from pipeline.filters.gopher_quality import GopherQuality
from pipeline.filters.gopher_repetition import GopherRepetition
from pipeline.filters.language import Language, model_path
from pipeline.filters.ngram_coverage import NgramCoverage
from pipeline.filters.perplexity import Perplexity
from pipeline.filters.refinedweb import RefinedWeb
from pipeline.filters.symbols import Symbols
from pipeline.step import Documents, Filter


def documents(count: int) -> list[str]:
    """`count` real documents; help texts of the standard library where the data is not there."""
    if DATA.is_dir():
        return real_texts(count)
    import pkgutil
    import pydoc

    names = [module.name for module in pkgutil.iter_modules() if not module.name.startswith(("_", "test", "idle"))]
    out = []
    for name in names[:count]:
        try:
            out.append(pydoc.plain(pydoc.render_doc(name)))
        except Exception as error:
            print(f"# {name}: {error}")
    return out


def run_filters(steps: list[Filter], batch: Any) -> None:
    """All steps on one batch, with verdicts and changed columns, sharing their analysis."""
    docs = Documents(batch)
    for step in steps:
        step.verdict(docs, step.scores(docs))
        step.columns(docs)


def regex_pii(texts: list[str]) -> int:
    """The usual way to find personal data: each pattern over each document."""
    patterns = [
        re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b"),
        re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b"),
        re.compile(r"\+?\d{1,3}?[ .-]?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"),
        re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)"),
        re.compile(r"(?<!\d)[1-9]\d{16}[\dXx](?!\d)"),
        re.compile(r"\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b"),
        re.compile(r"\b(?:\d[ -]?){13,19}\b"),
        re.compile(r"\b(?:AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}|sk-[A-Za-z0-9-]{32,}|AIza[\w-]{35}|hf_[A-Za-z]{34})\b"),
        re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
        re.compile(r"(?<![:\w])(?:[0-9A-Fa-f]{1,4}:){2,7}[0-9A-Fa-f]{0,4}(?![:\w])"),
    ]
    return sum(len(pattern.findall(text)) for text in texts for pattern in patterns)


def ours(batch: Any, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """What is measured of this project: name and work."""
    four = {
        v: [GopherQuality(variant=v), GopherRepetition(variant=v), C4(variant=v), FineWeb(variant=v)] for v in VARIANTS
    }
    out: dict[str, Callable[[], Any]] = {
        f"four filters, {variant}": (lambda steps=steps: run_filters(steps, batch)) for variant, steps in four.items()
    }
    single: list[Filter] = [
        GopherQuality(), GopherRepetition(), C4(), FineWeb(), NgramCoverage(), RefinedWeb(), Symbols(), BadWords(),
        Chinese(), Code(), Language(),
    ]  # fmt: skip
    gsm8k = DATA / "math" / "gsm8k_train.jsonl.xz"
    if gsm8k.exists():
        single.append(Contamination(benchmarks={"gsm8k": str(gsm8k)}))
    for step in single:
        out[step.step_name()] = lambda step=step: run_filters([step], batch)
    for variant in ("dolma", "dclm", "redpajama"):
        gopher: list[Filter] = [GopherQuality(variant=variant), GopherRepetition(variant=variant)]
        out[f"both Gopher filters, {variant}"] = lambda steps=gopher: run_filters(steps, batch)
    out["clean.pii"] = lambda: PII().transform(Documents(batch))
    out["filters.kl_divergence, second pass after tokens"] = second_pass(batch)
    out["pii, regex per document"] = lambda: regex_pii(texts)
    out |= perplexity(batch, texts)
    return out


def perplexity(batch: Any, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """A 5-gram model of a third of the documents, trained and applied, where kenlm is installed."""
    try:
        import kenlm  # noqa: F401
    except ImportError:
        return {}
    from pipeline.kernels.kneser_ney import train

    third = [line.lower().split() for text in texts[::3] for line in text.split("\n") if line.strip()]
    folder = tempfile.mkdtemp()
    path = Path(folder) / "model.arpa"
    path.write_text("\n".join(train(third).arpa()), encoding="utf-8")
    step = Perplexity(model=str(path))
    run_filters([step], batch)  # the model is read
    shutil.rmtree(folder)
    share = sum(len(text) for text in texts[::3]) / sum(map(len, texts))
    return {
        "filters.perplexity, 5-gram model of words": lambda: run_filters([step], batch),
        f"training that model on {share:.0%} of the documents": lambda: train(third),
    }


VARIANTS = ("paper", "datatrove")


def second_pass(batch: Any) -> Callable[[], Any]:
    """KL scores of documents whose tokens are there already."""
    from pipeline.kernels.divergence import buckets_of, divergences
    from pipeline.kernels.text import words_of

    words = words_of(Documents(batch), "script")
    n = len(words.first) - 1
    buckets = buckets_of(words.first, words.normal, np.zeros(n, np.uint64), 20)
    counts = np.bincount(buckets, minlength=1 << 20)
    totals, types = np.full(n, float(counts.sum())), np.full(n, float(np.count_nonzero(counts)))
    return lambda: divergences(words.first, buckets, counts, totals, types, 0.1)


def fasttext_loop(texts: list[str]) -> dict[str, Callable[[], Any]]:
    """fastText's own bulk call on the first 1,000 characters, where a binding is installed."""
    try:
        import fasttext
    except ImportError:
        return {}
    model = fasttext.load_model(model_path(None))
    lines = [text[:1000].replace("\n", " ") for text in texts]
    bulk = getattr(model.f, "multilinePredict", None)
    out: dict[str, Callable[[], Any]] = {"fasttext, one call per document": lambda: [model.predict(x) for x in lines]}
    if bulk is not None:
        out["fasttext, its bulk call"] = lambda: bulk(lines, 1, 0.0, "strict")
    return out


def datatrove(texts: list[str]) -> dict[str, Callable[[], Any]]:
    """datatrove's four filters, as they ship and with white-space words."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
    from datatrove_reference import Reference

    def all_four(words: str) -> Callable[[], Any]:
        reference = Reference(words)
        return lambda: [reference.decide(name, text) for text in texts for name in reference.filters]

    return {
        "datatrove, four filters, spaCy words": all_four("spacy"),
        "datatrove, four filters, str.split": all_four("space"),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--with-datatrove", action="store_true", help="its two runs, one round each (minutes)")
    arguments = parser.parse_args()
    texts = documents(arguments.documents)
    batch = batch_of(texts)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {size:.1f} MB\n")
    work = ours(batch, texts) | fasttext_loop(texts)
    for call in work.values():
        call()  # compiles
    best = dict.fromkeys(work, float("inf"))
    for _ in range(arguments.rounds):
        for name, call in work.items():  # interleaved: a busy machine slows all of them
            started = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - started)
    if arguments.with_datatrove:
        for name, call in datatrove(texts).items():
            started = time.thread_time()
            call()
            best[name] = time.thread_time() - started
            for variant in VARIANTS:  # again beside it, so that the ratio is of one moment
                seconds = float("inf")
                for _ in range(3):
                    started = time.thread_time()
                    work[f"four filters, {variant}"]()
                    seconds = min(seconds, time.thread_time() - started)
                print(f"{name} / four filters, {variant}: {best[name] / seconds:.0f} times")
    print("\n| what | documents/s | MB/s |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {len(texts) / seconds:,.0f} | {size / seconds:,.1f} |")


if __name__ == "__main__":
    main()
