"""Joining a cluster: what a user is told when there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    joined = subprocess.run(
        [sys.executable, "-c", "from cluster import ray; ray.start()"],
        env={**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": ""},  # Ray sets it where it has been started
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert joined.returncode == 1
    assert f"could not join the Ray cluster at RAY_ADDRESS={address}: [Errno 111]" in joined.stderr
    assert "RAY_AUTH_MODE=token" in joined.stderr
    assert time.monotonic() - started < 60
