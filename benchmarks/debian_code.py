"""Unpacks source code from Debian's packages: Python libraries and the parts of Linux that are not drivers.

    python benchmarks/debian_code.py OUT

Downloads the packages by apt (nothing is installed). Needs a Debian machine; licences: each
package's copyright file.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from debian_docs import unpack

PYTHON = "sympy,django,scipy,pandas,twisted,networkx,matplotlib"
LINUX = "linux-source-6.1"
PARTS = "kernel mm fs net lib block crypto tools security virt ipc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in [f"python3-{name}" for name in PYTHON.split(",")] + ["ansible"]:
        unpack(name, out)
        print(name, flush=True)
    archive = unpack(LINUX, out) / "usr/src" / f"{LINUX}.tar.xz"
    if archive.is_file():
        members = [f"{LINUX}/{part}" for part in PARTS.split()]
        subprocess.run(["tar", "xJf", archive.resolve(), *members], cwd=out / LINUX, check=True)
        archive.unlink()
    print(LINUX)


if __name__ == "__main__":
    main()
