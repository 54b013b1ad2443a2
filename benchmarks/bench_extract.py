"""Quality and speed of the main-content engines on three public benchmarks, one core, one run.

    python benchmarks/bench_extract.py [--engines corpusmill,resiliparse,trafilatura] [--every 1]

Engines take turns page by page, so that a busy machine slows all alike; the clock is CPU time of the process.
The corpusmill row is what the shipped model says of pages that it was trained on; `train_extract.py` prints the
scores on pages of domains that were held back.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extraction_sets import items, scores

from pipeline.extract.main_content import extract


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="corpusmill,resiliparse,trafilatura")
    parser.add_argument("--every", type=int, default=1, help="take every n-th page")
    options = parser.parse_args()
    engines = options.engines.split(",")
    pages = list(items())[:: options.every]
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
