"""Join a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from cluster.errors import RunError

_SMALL_STORE_BYTES = 256 << 20
"""Rows travel as files; the object store holds little more than settings."""


def start(workers: int | None = None) -> int:
    """Join the cluster that RAY_ADDRESS names (a submitted job, KubeRay), or start Ray here. CPUs of the cluster.

    Started here, it has no dashboard, a small object store and `workers` CPUs (all cores if None). Calling it again is
    fine. Worker processes see this process's import path, so that a checkout works without installing it.
    """
    # a failed task is reported once, by whoever asked for its result
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        stops = signal.getsignal(signal.SIGTERM)
        path = os.pathsep.join(dict.fromkeys([os.getcwd(), *(p for p in sys.path if p)]))
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "corpusmill"}
        if address := os.environ.get("RAY_ADDRESS"):
            _join(address, common)
        else:
            # One thread per worker: libraries that start a thread per core would fight over the same cores.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            try:
                with _environment({"PYTHONPATH": path, **threads}):
                    ray.init(
                        address="local",  # without it Ray joins any cluster that somebody has started on this machine
                        num_cpus=max(2, workers or os.cpu_count() or 1),
                        include_dashboard=False,
                        object_store_memory=_SMALL_STORE_BYTES,
                        **common,
                    )
            except Exception as error:
                raise RunError(
                    f"Ray did not start on this machine: {error}. The usual causes are a full /tmp, too little "
                    "memory or a firewall on loopback; its logs are below /tmp/ray/session_latest/logs"
                ) from error
        if callable(stops) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stops)  # Ray's own handler aborts with a stack trace
    return int(ray.cluster_resources().get("CPU", 1))


def _join(address: str, settings: dict[str, Any]) -> None:
    """Join a cluster. Raises RunError, at once where nobody listens: Ray itself would try for minutes."""
    import ray

    host, colon, port = address.rpartition("//")[2].rpartition(":")
    try:
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**settings)
    except Exception as error:
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            hint = "; if the cluster has token authentication on, set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
        else:
            hint = "; is RAY_AUTH_TOKEN (or ~/.ray/auth_token) the cluster's token?"
        raise RunError(
            f"could not join the Ray cluster at RAY_ADDRESS={address}: {error}{hint}; without RAY_ADDRESS, Ray starts "
            "on this machine"
        ) from error


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that start meanwhile, and theirs.

    Ray's own way, runtime_env, costs each worker's start half a second: an agent makes the environment first.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def stop() -> None:
    """Leave the cluster; ends it if it was started here."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
