"""`corpusmill check` says ok where runs work, and is wrong where they would fail."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import corpusmill
from cluster import preflight, ray
from cluster.preflight import Finding, findings

NAMES = ["python", "packages", "[train]", "[s3]", "[cluster]", "out", "shm", "tmp", "kernels", "torch", "ray"]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks: starting Ray takes seconds."""
    monkeypatch.setattr(preflight, "_ray", lambda: "not asked")


def by_name(out: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings(out)}


def test_all_is_well_here_and_every_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corpusmill", "check", "--out", str(tmp_path / "new/run")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == NAMES
    assert {line[0] for line in lines} <= {"ok", "warning"}
    assert f"{ray.cores()} CPUs" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_bucket_is_tried_with_conditional_puts(without_ray: None, bucket: str) -> None:
    assert by_name(f"{bucket}/run")["out"] == Finding(
        "ok", "out", f"{bucket}/run takes conditional puts (If-None-Match) and gives them back"
    )
    absent = by_name("s3://no-such-bucket/run")["out"]
    assert absent.level == "wrong"
    assert "NoSuchBucket" in absent.told
    assert "make the bucket first" in absent.told


def test_what_is_wrong_makes_the_exit_code(
    without_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert corpusmill.main(["check", "--out", str(tmp_path / "file/run")]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert line.split()[1] == "out"
    assert "Not a directory" in line


def test_an_absent_and_an_old_package_are_named(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "selectolax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "numba" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = by_name(".")["packages"]
    assert found.level == "wrong"
    assert found.told == "numba 0.1 is not >=0.62; selectolax is missing: pip install 'corpusmill'"


def test_little_room_is_a_warning(without_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64 << 20, used=63 << 20, free=1 << 20))
    found = by_name(str(tmp_path))
    assert {found[name].level for name in ("out", "shm", "tmp")} == {"warning"}
    assert "--shm-size=1g" in found["shm"].told


def test_a_cluster_that_is_not_there_is_wrong_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "start", lambda: ray._join("127.0.0.1:1", {}))
    found = by_name(".")["ray"]
    assert found.level == "wrong"
    assert "could not join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in found.told
    assert "\n" not in str(found)
