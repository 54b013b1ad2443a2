"""Speed of the main-content engines on Debian's HTML documentation in German, French, Chinese and Japanese.

    python benchmarks/bench_extract_docs.py [--unpacked DIR] [--languages de,fr,zh,ja] [--every 40]

Packages are downloaded by apt and unpacked, nothing is installed (needs a Debian machine). Every language has a
process of its own, so that one that dies is seen. corpusmill extracts every page; on each --every-th page the peers
take turns with it, and the ratio is that of the CPU seconds of those pages. Peak memory is the process's, with
all engines loaded, before and after the peers ran.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

KINDS = "libreoffice-help-{} debian-reference-{} debian-faq-{} maint-guide-{}"
PACKAGES = {
    "de": f"{KINDS} lilypond-doc-html-de developers-reference-de".format(*["de"] * 4),
    "fr": f"{KINDS} lilypond-doc-html-fr developers-reference-fr aptitude-doc-fr".format(*["fr"] * 4),
    "ja": f"{KINDS} lilypond-doc-html-ja developers-reference-ja aptitude-doc-ja".format(*["ja"] * 4),
    "zh": f"{KINDS} lilypond-doc-html-zh libreoffice-help-zh-tw debian-reference-zh-tw".format(*["zh-cn"] * 4),
}
PEERS = ("resiliparse", "trafilatura")


def measured(files: list[Path], every: int, peers: list[str]) -> dict[str, float]:
    """Figures of one language, in this process."""
    from pipeline.extract.main_content import extract

    def timed(engine: str, html: bytes) -> float:
        start = time.process_time()
        text = extract(html, engine=engine).text  # type: ignore[arg-type]
        spent = time.process_time() - start
        out["empty"] += engine == "corpusmill" and not text
        return spent

    out: dict[str, float] = {"pages": len(files), "MB": 0.0, "cpu": 0.0, "slowest": 0.0, "empty": 0.0}
    extract(b"<p>warm</p>" * 9)
    for file in files:
        html = file.read_bytes()
        spent = timed("corpusmill", html)
        out["MB"] += len(html) / 1e6
        out["cpu"] += spent
        out["slowest"] = max(out["slowest"], spent)
    out["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    out |= {"sample": len(files[::every]), "sample_corpusmill": 0.0} | {f"sample_{peer}": 0.0 for peer in peers}
    for peer in peers:
        extract(b"<p>warm</p>" * 9, engine=peer)  # type: ignore[arg-type]
    for file in files[::every]:
        html = file.read_bytes()
        for engine in ("corpusmill", *peers):
            out[f"sample_{engine}"] += timed(engine, html)
    out["peak_all_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return out


def main() -> int:
    from debian_docs import pages, unpack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpacked", type=Path, help="where packages are unpacked; a temporary folder otherwise")
    parser.add_argument("--languages", default="de,fr,zh,ja")
    parser.add_argument("--every", type=int, default=40, help="peers extract every n-th page")
    parser.add_argument("--engines", default=",".join(PEERS), help="peers")
    parser.add_argument("--download", action="store_true", help="only download and unpack")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        files = [file for root in PACKAGES[options.languages].split() for file in pages(options.unpacked / root)]
        print(json.dumps(measured(files, options.every, options.engines.split(","))))
        return 0
    peers = options.engines.split(",")
    died = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.unpacked or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for language in options.languages.split(","):
            for package in PACKAGES[language].split():
                unpack(package, folder)
        if options.download:
            return 0
        print(
            "| language | pages | MB | corpusmill pages / CPU s | slowest page, s | without text | peak memory, MiB | "
            + " | ".join(f"{peer} pages / CPU s (times slower)" for peer in peers)
            + " | same pages |\n|"
            + "---|" * (8 + len(peers))
        )
        for language in options.languages.split(","):
            command = [sys.executable, __file__, "--child", "--languages", language, "--unpacked", str(folder)]
            command += ["--every", str(options.every), "--engines", options.engines]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if child.returncode:
                died += 1
                print(f"| {language} | the process died: {child.returncode} |")
                continue
            f = json.loads(child.stdout)
            others = (
                f"{f['sample'] / f[f'sample_{p}']:.0f} ({f[f'sample_{p}'] / f['sample_corpusmill']:.1f})" for p in peers
            )
            print(
                f"| {language} | {f['pages']} | {f['MB']:.0f} | {f['pages'] / f['cpu']:.0f} | {f['slowest']:.2f} "
                f"| {f['empty']:.0f} | {f['peak_MiB']:.0f} | {' | '.join(others)} | {f['sample']} |",
                flush=True,
            )
    return 1 if died else 0


if __name__ == "__main__":
    raise SystemExit(main())
