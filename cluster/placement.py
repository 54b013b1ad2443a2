"""Where a group of workers runs: one bundle of CPUs and GPUs each, all of them or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.errors import RunError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


class NoRoom(RunError):
    """The cluster has no room for the workers: less than they need, or others hold it."""


def place(workers: int, *, gpus_each: int = 0, timeout: float = 120.0) -> PlacementGroup:
    """Reserve `workers` equal bundles, close together; raises NoRoom naming what is missing after `timeout` seconds.

    Without GPUs a bundle is one CPU, or an equal share when there are fewer CPUs than workers (ranks of a test). A
    cluster that grows or shrinks meanwhile is seen: right after a node died Ray still counts what it had.
    """
    import time

    from ray.util.placement_group import placement_group, remove_placement_group

    deadline = time.monotonic() + timeout
    while True:
        bundle = _bundle(workers, gpus_each)
        group = placement_group([dict(bundle) for _ in range(workers)], strategy="PACK")
        while time.monotonic() < deadline:
            if group.wait(min(2.0, timeout)):
                return group
            if bundle != _bundle(workers, gpus_each):
                break
        remove_placement_group(group)
        if time.monotonic() >= deadline:
            raise _no_room(workers, bundle, timeout)


def _bundle(workers: int, gpus_each: int) -> dict[str, float]:
    """What each worker gets of the cluster as it is now. Raises NoRoom when GPUs are missing that cannot come."""
    import ray

    total = ray.cluster_resources()
    if gpus_each and total.get("GPU", 0.0) < workers * gpus_each and not _can_grow():
        raise NoRoom(
            f"{workers} workers need {workers * gpus_each} GPUs, the cluster has {total.get('GPU', 0.0):g}: "
            "set workers to fewer, or device: cpu"
        )
    cpus = total.get("CPU", 0.0)
    share = 1.0 if cpus >= workers else max(0.01, int(100 * cpus / workers) / 100)
    return {"CPU": share, **({"GPU": float(gpus_each)} if gpus_each else {})}


def _no_room(workers: int, bundle: dict[str, float], timeout: float) -> NoRoom:
    import ray

    free = ray.available_resources()
    return NoRoom(
        f"no room for {workers} workers of {bundle} within {timeout:g} s: free are "
        f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs; another job may hold the rest"
    )


def release(group: PlacementGroup) -> None:
    """Give the bundles back; workers still inside are killed."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def _can_grow() -> bool:
    """Whether an autoscaler could still add nodes: then waiting is right."""
    import os

    return bool(os.environ.get("RAY_ADDRESS"))
