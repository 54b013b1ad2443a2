"""Fuzzes the main-content extractor with damaged real pages for a number of CPU minutes.

    python benchmarks/fuzz_extract.py [--minutes 10] [--seed 0] [--keep DIR]

Pages of two open benchmarks (news, blogs, a few not valid UTF-8) are damaged: bytes flipped, dropped and doubled, tags
cut off, spliced in and nested, pages cut short and put together. The kernels run with every index checked
(NUMBA_BOUNDSCHECK), so that a read or write outside an array is found, which compiled code would not notice. A finding
is an exception, a page slower than SECONDS_PER_MIB, spans outside the page, text that is not UTF-8, or another text at
a second call. Findings are written to --keep and named; the exit code is 1 when there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["NUMBA_BOUNDSCHECK"] = "1"
os.environ["NUMBA_CACHE_DIR"] = os.environ.get("FUZZ_CACHE", tempfile.mkdtemp(prefix="fuzz-extract-"))
LARGEST = 200_000
SECONDS_PER_MIB = 20.0
"""With all indices checked; without it the limit of a page is far below."""

_NAMES = b"p div a b i table tr td li ul ol dl dt dd pre svg math noscript script style".split()
_SIGNS = (
    b"<!--|-->|<!|<?|<![CDATA[|]]>|</|<|>|/>|&|&#|&#x110000;|&amp|'|\"|=|\x00|\xff|\xc3|\xe2\x80|\xf0\x9f|\xef\xbb\xbf"
)
TOKENS = [
    *(b"<%s>" % name for name in _NAMES),
    *(b"</%s>" % name for name in _NAMES),
    *(b"<%s " % name for name in b"h1 title textarea select template iframe plaintext body html head x-y".split()),
    *_SIGNS.split(b"|"),
    b' class="a b-c_d ArticleBody"', b" hidden", b' style="display:none"', b" alttext='", b' aria-hidden="true"',
    b'<meta charset="utf-16">', b"<meta charset=euc-kr>", b'<script type="application/ld+json">{"articleBody":"',
    b'<math alttext="x^2">', b"\r", b"\n", b"\x1b$B", "Ünïcödé ".encode(), "、。".encode(),
    " \u00a0\u00ad\u200b".encode(),
]  # fmt: skip


def damaged(page: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`page` after one to eight accidents."""
    data = bytearray(page)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(10)
        if kind == 0:
            for _ in range(rng.choice([1, 10, 200])):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice([1, 5, 100, 5000])]
        elif kind == 2:
            data[at:at] = data[at : at + rng.choice([10, 200, 3000])] * rng.choice([1, 2, 20])
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            for _ in range(rng.choice([1, 20, 300])):
                place = rng.randrange(len(data) + 1)
                data[place:place] = rng.choice(TOKENS)
        elif kind == 5:
            data[at:at] = rng.choice(TOKENS) * rng.choice([3, 100, 3000])
        elif kind == 6:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            data[at:] = other[cut:]
        elif kind == 7:  # end tags lost, or start tags
            lost = rng.choice([b"</", b"<div", b"<p", b"<table", b'"', b">", b"<li"])
            data = bytearray(data.replace(lost, rng.choice([b"", b"<", lost + lost]), rng.choice([1, 10, -1])))
        elif kind == 8:
            data[at : at + rng.choice([2, 64])] = rng.randbytes(rng.choice([1, 8, 64]))
        else:
            data = data[at:]
        del data[LARGEST:]
    return bytes(data)


def fault(data: bytes, encoding: str | None, url: str | None) -> str | None:
    """What is wrong with the extractor's answer for these bytes."""
    from pipeline.extract.main_content import extract, whole_text
    from pipeline.kernels.html_scan import scan

    start = time.process_time()
    try:
        first = extract(data, url=url, encoding=encoding)
        spent = time.process_time() - start
        for text in (first.text, first.title or "", whole_text(data)):
            text.encode("utf-8")
        if extract(data, url=url, encoding=encoding) != first:
            return "another answer at a second call"
        page = scan(data)
    except Exception:
        return traceback.format_exc()
    if spent > SECONDS_PER_MIB * (len(data) / 2**20 + 0.1):
        return f"{spent:.1f} CPU seconds for {len(data)} bytes"
    if len(page.run_end) and not ((page.run_start <= page.run_end).all() and int(page.run_end.max()) <= len(data)):
        return "a run outside the page"
    return None


def main() -> int:
    from extraction_sets import items

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes, compilation apart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_findings"))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    seeds = [item.html[:LARGEST] for item in items(("aeb", "trafilatura"))]
    fault(b"<p>warm</p>" * 50, None, None)
    begin = time.process_time()
    runs, size, slowest, faults = 0, 0, 0.0, set()
    while time.process_time() - begin < options.minutes * 60:
        data = damaged(rng.choice(seeds), seeds, rng)
        encoding = rng.choice([None, None, None, "utf-8", "latin-1", "shift_jis", "no-such-charset", "\x00"])
        url = rng.choice([None, "http://a.example/2020/01/x-y-z?q=1", "http://[", "\udcff", "//:::"])
        before = time.process_time()
        found = fault(data, encoding, url)
        slowest = max(slowest, time.process_time() - before)
        runs, size = runs + 1, size + len(data)
        if found and found not in faults:
            faults.add(found)
            options.keep.mkdir(exist_ok=True)
            path = options.keep / (hashlib.sha256(data).hexdigest()[:16] + ".html")
            path.write_bytes(data)
            print(f"{path} (encoding {encoding!r}, url {url!r}):\n{found}", flush=True)
    minutes = (time.process_time() - begin) / 60
    print(
        f"{runs} damaged pages, {size / 2**20:.0f} MiB, {minutes:.1f} CPU minutes with checked indices, slowest "
        f"{slowest:.2f} s for two extractions, a scan and a whole text; {len(faults)} findings"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
