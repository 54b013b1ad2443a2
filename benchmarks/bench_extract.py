"""Quality and speed of the main-content engines on three public benchmarks, one core, one run.

    python benchmarks/bench_extract.py [--engines corpusmill,resiliparse,trafilatura] [--every 1]
    python benchmarks/bench_extract.py --fold 3 --model model.npz   # made by train_extract.py --without 3

Engines take turns page by page, so that a busy machine slows all alike; the clock is CPU time of the process.
Without --model the corpusmill row is what the shipped model says of pages that it was trained on.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extraction_sets import fold_of, items, scores

from pipeline.extract import model
from pipeline.extract.main_content import extract


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="corpusmill,resiliparse,trafilatura")
    parser.add_argument("--every", type=int, default=1, help="take every n-th page")
    parser.add_argument("--fold", type=int, help="only pages of these domains")
    parser.add_argument("--model", type=Path, help="another model than the shipped one")
    options = parser.parse_args()
    model.FILE = options.model or model.FILE
    engines = options.engines.split(",")
    pages = [page for page in items() if options.fold in (None, fold_of(page))][:: options.every]
    texts: dict[str, dict[tuple[str, str], str]] = {engine: {} for engine in engines}
    seconds = dict.fromkeys(engines, 0.0)
    slowest = dict.fromkeys(engines, 0.0)
    for engine in engines:
        extract(b"<p>warm</p>", engine=engine)
    for page in pages:
        for engine in engines:
            start = time.process_time()
            texts[engine][page.set, page.id] = extract(page.html, url=page.url, engine=engine).text
            spent = time.process_time() - start
            seconds[engine] += spent
            slowest[engine] = max(slowest[engine], spent)
    print("| engine | pages / CPU s | slowest page, s | WCXB | AEB | trafilatura's set | WCXB by kind |")
    print("|---|---|---|---|---|---|---|")
    for engine in engines:
        found = scores(texts[engine], pages)
        kinds = ", ".join(f"{k.removeprefix('wcxb ')} {v:.3f}" for k, v in found.items() if k.startswith("wcxb "))
        print(
            f"| {engine} | {len(pages) / seconds[engine]:.0f} | {slowest[engine]:.2f} | {found['wcxb']:.3f} "
            f"| {found['aeb']:.3f} | {found['trafilatura']:.3f} | {kinds} |"
        )
    print(
        f"{len(pages)} pages; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB (all engines)"
    )


if __name__ == "__main__":
    main()
