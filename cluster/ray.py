"""Join a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import RunError

_SMALL_STORE_BYTES = 256 << 20
"""Rows travel as files; the object store holds little more than settings."""


def cores(groups: str = "/sys/fs/cgroup") -> int:
    """How many cores this process may keep busy: those it is bound to, or its container's quota if that is less.

    os.cpu_count counts the machine's, and Ray starts a process for each: with 64 of them on 2 cores nothing moves.
    """
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):  # cgroup v2: "max 100000" without a quota
        quota, period = Path(groups, "cpu.max").read_text().split()
        found = min(found, int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):  # cgroup v1: -1 without one
        quota, period = (Path(groups, "cpu", f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        found = min(found, int(quota) / int(period)) if int(quota) > 0 else found
    return max(1, math.ceil(found))


def start(workers: int | None = None) -> int:
    """Join the cluster that RAY_ADDRESS names (a submitted job, KubeRay), or start Ray here. CPUs of the cluster.

    Started here, it has no dashboard, a small object store and `workers` CPUs (`cores()` if None). Calling it again is
    fine. Worker processes see this process's import path, so that a checkout works without installing it.
    """
    # a failed task is reported once, by whoever asked for its result
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.access(os.path.expanduser("~"), os.W_OK):  # a container's user without a home: Ray writes its token there
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _held_back():
        import ray

    if not ray.is_initialized():
        path = os.pathsep.join(dict.fromkeys([os.getcwd(), *(p for p in sys.path if p)]))
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "corpusmill"}
        if address := os.environ.get("RAY_ADDRESS"):
            with _own_handlers():
                _join(address, common)
        else:
            # One thread per worker: libraries that start a thread per core would fight over the same cores.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            try:
                with _environment({"PYTHONPATH": path, **threads}), _own_handlers():
                    ray.init(
                        address="local",  # without it Ray joins any cluster that somebody has started on this machine
                        num_cpus=max(2, workers or cores()),
                        include_dashboard=False,
                        object_store_memory=_SMALL_STORE_BYTES,
                        **common,
                    )
            except Exception as error:
                raise RunError(
                    f"Ray did not start on this machine: {error}. The usual causes are a full /tmp, too little "
                    "memory or a firewall on loopback; its logs are below /tmp/ray/session_latest/logs"
                ) from error
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


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block: of half of Ray, Python would make a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray's handlers of SIGTERM, which end the process without a word or with a stack trace, do not take effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    install, ours = signal.signal, signal.getsignal(signal.SIGTERM)

    def but_sigterm(number: int, handler: Any) -> Any:
        return ours if number == signal.SIGTERM else install(number, handler)

    signal.signal = but_sigterm  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install
        install(signal.SIGTERM, ours or signal.SIG_DFL)  # Ray's C++ side has put its own below Python's


def stop() -> None:
    """Leave the cluster; ends it if it was started here."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
