"""Fixtures that all areas share: the real data where it is there, one local Ray, and an S3 server on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped without it."""
    if not DATA.is_dir():
        pytest.skip("the real data (../shared/data) are not on this machine")
    return DATA


@pytest.fixture(scope="session")
def ray_cluster(s3_address: str) -> Iterator[None]:
    """A local Ray, ended with the session.

    It counts 8 CPUs, whatever the machine has: the trainers' groups of 1, 2 and 3 workers stay from file to file, and
    two are left for a pipeline. Its processes know where the S3 server of the tests will be.
    """
    from cluster import ray

    ray.start(8)
    yield
    ray.stop()


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """URL where the S3 server is or will be, with the environment set so that everything uses it.

    CORPUSMILL_TEST_S3 names another server (a Ceph gateway, MinIO) to test against, with the AWS_* variables set.
    """
    if os.environ.get("CORPUSMILL_TEST_S3"):
        yield os.environ["CORPUSMILL_TEST_S3"]
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    mine = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    yield url
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def s3_endpoint(s3_address: str) -> Iterator[str]:
    """URL of an S3 server in a process of its own."""
    if os.environ.get("CORPUSMILL_TEST_S3"):
        yield s3_address
        return
    port = s3_address.rpartition(":")[2]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            urllib.request.urlopen(s3_address + "/moto-api/", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    yield s3_address
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    """s3:// path of a fresh bucket."""
    import boto3

    name = f"test-{time.time_ns()}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=name)
    return f"s3://{name}"
