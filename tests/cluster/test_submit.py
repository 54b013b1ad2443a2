"""A job on a real Ray cluster with its job server and its token: log, exit code, what a user is told."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import corpusmill

ROOT = Path(__file__).parents[2]
RECIPE = "steps:\n  - crawl.corpus: {path: in.jsonl}\n  - filters.python: {function: rules:%s}\nworkers: 2\n"
RULES = "import time\n\ndef keep(doc):\n    pass\n\ndef sleep(doc):\n    time.sleep(600)\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of the job server, environment with the token) of a Ray cluster whose nodes have `corpusmill`."""
    for package in ("aiohttp", "aiohttp_cors", "opencensus"):
        pytest.importorskip(package, reason="Ray's job server: pip install 'corpusmill[cluster]'")
    bin_folder = tmp_path_factory.mktemp("bin")
    (bin_folder / "corpusmill").write_text(f'#!/bin/sh\nexec {sys.executable} -m corpusmill "$@"\n')
    (bin_folder / "corpusmill").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port, agent_port = server.getsockname()[1], other.getsockname()[1]
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT)}
    mine["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | mine
    files = tempfile.mkdtemp(prefix="ray")  # short, for sockets; and its own: "auto" is the last cluster named there
    start = [
        "start",
        "--head",
        "--block",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={agent_port}",  # the usual one is that of any other Ray on this machine
        "--port=0",
        "--num-cpus=2",
        f"--temp-dir={files}",
    ]
    start += ["--object-store-memory=268435456", "--disable-usage-stats"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    asked = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {mine['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(asked, timeout=5)
            break
        time.sleep(0.5)
    yield address, environment
    head.terminate()
    head.wait()
    shutil.rmtree(files, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "corpus.yaml").write_text(RECIPE % "keep")
    (tmp_path / "slow.yaml").write_text(RECIPE % "sleep")
    return tmp_path


def submitted(folder: Path, address: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "corpusmill", "submit", *more, "--address", address, "--out", str(folder / "out")]


def test_a_job_runs_on_the_cluster_with_its_log_here(cluster: tuple[str, dict[str, str]], folder: Path) -> None:
    address, environment = cluster
    command = submitted(folder, address, "corpus.yaml")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 = 2 + 0 + 0" in done.stdout
    assert done.stderr.startswith("job raysubmit_")
    assert done.stderr.count("\n") == 1
    assert json.loads((folder / "out/run.json").read_text())["status"] == "done"


def test_the_exit_code_is_the_job_s(cluster: tuple[str, dict[str, str]], folder: Path) -> None:
    address, environment = cluster
    command = submitted(folder, address, "corpus.yaml", "--set", "crawl.corpus.path=none.jsonl")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].endswith("no file at 'none.jsonl'; give a file, a folder or a glob")


def test_ctrl_c_leaves_the_job_and_says_how_to_end_it(cluster: tuple[str, dict[str, str]], folder: Path) -> None:
    address, environment = cluster
    run = subprocess.Popen(
        submitted(folder, address, "slow.yaml"), cwd=folder, env=environment, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert run.stderr is not None
    job = run.stderr.readline().split()[1]
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert said.strip().endswith(f"`ray job stop --address {address} {job}`")
    assert said.count("\n") == 1
    stop = f"from ray.job_submission import JobSubmissionClient as C; print(C({address!r}).stop_job({job!r}))"
    ended = subprocess.run([sys.executable, "-c", stop], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "True", ended.stderr


def test_a_wrong_token_is_told_in_one_line(cluster: tuple[str, dict[str, str]], folder: Path) -> None:
    address, environment = cluster
    other = {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = subprocess.run(
        submitted(folder, address, "corpus.yaml"), cwd=folder, env=other, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"corpusmill: {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token\n"
    )


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("corpus.yaml --address h:8265 --out s3://b/r", 2, "--address h:8265: give the URL of the cluster's dashboard"),
        ("corpus.yaml --address http://h:8265 --out out", 2, "--out out: the job runs on another machine"),
        ("none.yaml --address http://h:8265 --out s3://b/r", 2, "no recipe at 'none.yaml'"),
        (
            "corpus.yaml --address http://h:1 --out s3://b/r --set filters.python.fnction=a:b",
            2,
            "did you mean 'function'",
        ),
        ("corpus.yaml --address http://h:1 --out s3://b/r --working-dir elsewhere", 2, "is not below --working-dir"),
    ],
)
def test_what_cannot_run_there_is_refused_before_anything_is_sent(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, told: str
) -> None:
    with contextlib.chdir(folder):
        assert corpusmill.main(["submit", *command.split()]) == code
    assert told in capsys.readouterr().err


def test_without_rays_client_the_extra_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # so that what the command sets is undone
    with contextlib.chdir(folder):
        assert corpusmill.main(["submit", "corpus.yaml", "--address", "http://127.0.0.1:1", "--out", "s3://b/r"]) == 1
    assert (
        capsys.readouterr().err == "corpusmill: submit needs the package aiohttp: pip install 'corpusmill[cluster]'\n"
    )
