"""`corpusmill demo`: Python's own documentation server is crawled, made into a corpus, and a small model trained on it.

Nothing here is special to the demo but the server: it runs recipes/tiny.yaml and recipes/tiny_pretrain.yaml.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import storage
from cluster.errors import RunError

RECIPES = Path(__file__).parent / "recipes"
PROMPT = "The"


def demo(out: str) -> int:
    """Run both recipes into OUT/corpus and OUT/model; print the funnel, the losses and a sampled text."""
    from rich.console import Console as RichConsole

    from cluster import ray
    from pipeline import recipe as recipes
    from pipeline.progress import Console
    from pipeline.report import funnel
    from pipeline.run import run
    from trainers.recipe import load_recipe
    from trainers.sample import sample
    from trainers.train import train

    corpus, model = storage.join(out, "corpus"), storage.join(out, "model")
    console = Console()
    try:
        with documentation_server() as (host, pages):
            console.line(f"crawling {pages} (Python's documentation server, on this machine)")
            settings = [
                f"crawl.site.seeds=['{pages}', '{pages}topics.html']",
                f"crawl.site.allow_private_hosts=['{host}']",
            ]
            made = recipes.load(RECIPES / "tiny.yaml", settings)
            report = run(made, corpus, console=console, recipe_name="recipes/tiny.yaml")
        console.line("")
        for line in funnel(report.stages):
            console.line(line)
        console.line("\ntraining on the packed rows")
        training = load_recipe(str(RECIPES / "tiny_pretrain.yaml"), [f"data={report.outputs['packed']}"])
        trained = train(training, model, console=RichConsole())
    finally:
        ray.stop()
    assert trained.export is not None
    console.line(f"\nloss {trained.first_loss:.3f} at step 1, {trained.last_loss:.3f} at step {trained.steps}")
    console.line(f"sampled: {sample(trained.export, PROMPT, tokens=48)!r}\n")
    reports = {"report": f"{corpus}/report.html and {model}/report.html"}
    for name, path in {**report.outputs, "model": trained.export, **reports}.items():
        console.line(f"{name:<10} {path}")
    first = report.stages[0]["steps"][-1]["removed"]
    if first:
        console.line(f"\nask what became of a page:  corpusmill why {corpus} {pages}textwrap.html")
    return 0


@contextmanager
def documentation_server() -> Iterator[tuple[str, str]]:
    """("host:port", URL) of `python -m pydoc -p`, on the port that the recipe names if it is free."""
    port = _free_port(7464)
    # isolated and without site-packages: it imports the modules that it documents
    command = [sys.executable, "-I", "-S", "-m", "pydoc", "-n", "127.0.0.1", "-p", str(port)]
    empty = tempfile.TemporaryDirectory()  # it documents what lies in its working folder too
    server = subprocess.Popen(
        command, cwd=empty.name, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    pages = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(pages, timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise RunError(f"`{' '.join(command)}` ended with exit code {server.returncode}") from None
                time.sleep(0.1)
        else:
            raise RunError(f"the documentation server did not answer at {pages} within 10 s")
        yield f"127.0.0.1:{port}", pages
    finally:
        server.kill()
        server.wait()
        empty.cleanup()


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            # as the server itself will bind: a port that was just used is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunError("no free port on 127.0.0.1")
