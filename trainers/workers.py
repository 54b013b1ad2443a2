"""One Ray actor per device, as a group: started together, watched, and started again when one is lost.

The driver asks every rank for its heartbeat. A rank that dies, or stays in one stage for too long, ends the
attempt: the others are stopped too (they wait in a collective that cannot finish), new workers take their places
and go on from the last checkpoint, with the very next row.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import placement
from cluster import ray as cluster_ray
from cluster.errors import CorpusmillError, DataError, RecipeError, RunError


class Worker:
    """A rank. Lives in a Ray actor; `run` trains in one thread while `status` answers in another."""

    def __init__(self, rank: int, world: int, device: str, threads: int):
        from trainers.log import Beat

        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        import torch

        torch.set_num_threads(threads)
        self.rank, self.world, self.device = rank, world, device
        self.beat = Beat()
        self.log: Any = None

    def address(self) -> tuple[str, int, int, float]:
        """(node address, a free port there, process id and the time when it began)."""
        import socket

        import psutil
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            began = psutil.Process().create_time()
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1]), os.getpid(), began

    def run(self, recipe: dict[str, Any], out: str, master: str, port: int, local_rank: int) -> dict[str, Any]:
        """Train to the end. Returns the results, or {"error": traceback, "stage": …, "step": …}."""
        try:
            import gc

            from trainers import ranks, session

            self.beat.at("start", 0)
            self.log = None
            gc.collect()  # the engines of a run before this one
            gc.freeze()  # what is left are libraries: half a million objects that no later collection need look at
            timeout = max(float(recipe["stall_seconds"]), SETTING_UP)
            group = ranks.join(self.rank, self.world, local_rank, master, port, self.device, timeout)
            return session.run(recipe, out, group, self)
        except BaseException as error:
            stage, step, _ = self.beat.read()
            return {
                "error": traceback.format_exc(),
                "summary": f"{type(error).__name__}: {error}",
                "stage": stage,
                "step": step,
                "exit_code": getattr(error, "exit_code", 1),
                "told": isinstance(error, CorpusmillError),
            }

    def status(self, lines_seen: int) -> dict[str, Any]:
        """Where this rank is, and rank 0's new metric lines."""
        stage, step, seconds = self.beat.read()
        log = self.log
        lines = log.since(lines_seen) if log else []
        return {"stage": stage, "step": step, "seconds": seconds, "turns": self.beat.turns, "lines": lines}


SLOW = ("start", "build", "restore", "export")
SETTING_UP = 900.0
"""Stages that read or write whole models, and the seconds that they may take at least before a rank counts as hung."""


class Lost(Exception):
    """A worker died or hung: worth another attempt."""


@dataclass
class Group:
    """The workers of one attempt and where they run."""

    workers: list[Any]
    placement: Any
    pids: list[int] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    """When each process started: with its number, that tells it from all others."""
    master: str = ""
    port: int = 0
    local_ranks: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, world: int, device: str, threads: int | None) -> Group:
        """Place and start `world` workers, and choose where they meet."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus = 1 if device == "cuda" else 0
        reserved = placement.place(world, gpus_each=gpus)
        share = reserved.bundle_specs[0]["CPU"]
        # more CPU threads than idle cores wait for each other: one is the safe choice on a shared machine
        threads = threads or (1 if device == "cpu" else max(1, cluster_ray.cores() // world))
        actor: Any = ray.remote(Worker)
        workers = [
            actor.options(
                num_cpus=share,
                num_gpus=gpus,
                max_concurrency=4,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=rank),
            ).remote(rank, world, device, threads)
            for rank in range(world)
        ]
        group = cls(workers, reserved)
        try:
            found = ray.get([worker.address.remote() for worker in workers], timeout=180)
        except Exception as error:
            group.stop()
            raise Lost(f"a worker did not start: {error}") from error
        hosts = [one[0] for one in found]
        group.pids, group.began = [one[2] for one in found], [one[3] for one in found]
        # a GPU worker sees only its own device, as number 0
        group.local_ranks = [0 if device == "cuda" else hosts[:rank].count(hosts[rank]) for rank in range(world)]
        group.master, group.port = ("127.0.0.1" if len(set(hosts)) == 1 else hosts[0]), found[0][1]
        return group

    def stop(self) -> None:
        """End all workers at once; those here without Ray, which a signal to all processes may have ended."""
        import psutil

        for process in _alive(self.pids, self.began):
            with contextlib.suppress(psutil.Error):  # gone meanwhile
                process.kill()

        def by_ray() -> None:
            import ray

            for worker in self.workers:
                ray.kill(worker, no_restart=True)
            placement.release(self.placement)

        asking = threading.Thread(target=by_ray, daemon=True)
        asking.start()
        asking.join(5.0)


class Crew:
    """Workers that stay between runs, for many short ones (a sweep): processes start and import once.

    with Crew() as crew: train(…, crew=crew); train(…, crew=crew)
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[int, str, int | None], Group] = {}

    def take(self, world: int, device: str, threads: int | None) -> Group:
        """A waiting group of this kind, or a new one, for which other waiting ones are ended if they are in the way."""
        import ray

        group = self._groups.pop((world, device, threads), None)
        if group is None:
            if ray.available_resources().get("GPU" if device == "cuda" else "CPU", 0.0) < world:
                self.end()
            group = Group.start(world, device, threads)
        return group

    def give_back(self, group: Group, world: int, device: str, threads: int | None) -> None:
        """Keep a healthy group for the next run."""
        self._groups[world, device, threads] = group

    def end(self) -> None:
        """End all waiting workers."""
        for group in self._groups.values():
            group.stop()
        self._groups.clear()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def crewed(crew: Crew | None) -> contextlib.AbstractContextManager[Crew]:
    """The crew that is given, which stays, or one for the length of a block."""
    return Crew() if crew is None else contextlib.nullcontext(crew)


def attempt(
    recipe: dict[str, Any], out: str, world: int, device: str, show: Callable[[dict[str, Any]], None], crew: Crew
) -> list[dict[str, Any]]:
    """One group from start to end; `show` gets each new metric line. Returns every rank's result.

    The group comes from `crew` and goes back to it when all went well.

    Raises Lost when a worker died or hung, RunError (with rank, stage and the worker's traceback) when one failed.
    """
    import ray

    group = crew.take(world, device, recipe["threads"])
    healthy, kills = False, _memory_kills()
    Path(out, "workers.json").write_text(json.dumps({"pids": group.pids, "began": group.began}) + "\n")
    try:
        waiting = {
            worker.run.remote(recipe, out, group.master, group.port, group.local_ranks[rank]): rank
            for rank, worker in enumerate(group.workers)
        }
        results: dict[int, dict[str, Any]] = {}
        watch = Watch(float(recipe["stall_seconds"]), show)
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.3)
            for future in ready:
                rank = waiting.pop(future)
                results[rank] = _result(future, rank)
            failed = {rank: result for rank, result in results.items() if "error" in result}
            if failed:
                _explain(failed, waiting)
            watch.ask(group, set(waiting.values()))
        watch.ask(group, set())
        healthy = True
        return [results[rank] for rank in range(world)]
    except Lost as lost:
        if _memory_kills() > kills:
            raise Lost(
                f"{lost}; memory ran out meanwhile on this machine, the kernel killed a process: lower micro_rows or "
                "workers, or share more by engine.zero"
            ) from lost
        raise
    finally:
        if healthy:
            crew.give_back(group, world, device, recipe["threads"])
        else:
            group.stop()
        Path(out, "workers.json").unlink(missing_ok=True)


def outlived(out: str, seconds: float = 30.0) -> None:
    """Wait for the workers of a driver that was killed in this folder: Ray ends them, but not at once.

    Raises RunError when they go on: their driver is alive, and two runs in one folder would spoil both.
    """
    import psutil

    told: dict[str, list[Any]] = {"pids": [], "began": []}
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or it was being written
        told = json.loads(Path(out, "workers.json").read_text())
    left = _alive(told["pids"], told["began"])
    _, alive = psutil.wait_procs(left, timeout=seconds)
    if alive:
        raise RunError(
            f"{out}: another run is at work in this folder (its workers are processes {[one.pid for one in alive]}); "
            "wait for it, end it, or use another --out"
        )


def _alive(pids: list[int], began: list[float]) -> list[Any]:
    """The processes of this machine among workers; another one that got a number has another time."""
    import psutil

    found = []
    for pid, since in zip(pids, began, strict=True):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == since:
                found.append(process)
    return found


def _memory_kills(counters: str = "/proc/vmstat") -> int:
    """How many processes the kernel has killed on this machine because memory ran out; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path(counters).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _result(future: Any, rank: int) -> dict[str, Any]:
    import ray

    try:
        return ray.get(future)  # type: ignore[no-any-return]
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise Lost(f"rank {rank} died: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _explain(failed: dict[int, dict[str, Any]], waiting: dict[Any, int]) -> None:
    """Decide between a dead peer (others then fail in a collective) and a real error, and raise."""
    import ray

    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=5.0) if waiting else ([], [])
    for future in ready:
        rank = waiting[future]
        result = _result(future, rank)
        if "error" in result:
            failed[rank] = result
    own = {rank: result for rank, result in failed.items() if result["told"] or not _peer_lost(result["summary"])}
    if not own:
        rank, result = next(iter(failed.items()))
        raise Lost(f"rank {rank} lost its peers in '{result['stage']}' at step {result['step']}: {result['summary']}")
    rank, result = min(own.items())
    if result["exit_code"] == RecipeError.exit_code:  # the user's, not ours: no traceback
        raise RecipeError(result["summary"].partition(": ")[2])
    if result["stage"] == "build" and result["summary"].startswith("DataError: "):  # a file that the recipe names
        raise DataError(result["summary"].partition(": ")[2])
    what = f"rank {rank} failed in '{result['stage']}' at step {result['step']}: "
    if result["told"]:  # it says what to do
        error = RunError(what + result["summary"].partition(": ")[2])
    elif result["summary"].startswith("OutOfMemoryError: "):  # torch's, of a GPU
        advice = "lower micro_rows, set engine.recompute: full, or share more by engine.zero"
        error = RunError(f"{what}{result['summary'].partition(': ')[2]}\n{advice}; the same command then goes on")
    else:
        error = RunError(f"{what}{result['summary']}\n\n{result['error']}")
    error.exit_code = result["exit_code"]
    raise error


def _peer_lost(summary: str) -> bool:
    """Whether an error is what a healthy rank sees when another one is gone."""
    text = summary.lower()
    return any(
        sign in text
        for sign in ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "socket", "broken pipe")
    )


@dataclass
class Watch:
    """What the driver knows of the ranks of one attempt: lines seen, and when each was last heard of."""

    stall: float
    show: Callable[[dict[str, Any]], None]
    seen: int = 0
    heard: dict[int, tuple[float, str, int]] = field(default_factory=dict)
    """Per rank: time, stage and step of its last answer."""

    def ask(self, group: Group, running: set[int]) -> None:
        """Ask all ranks where they are; pass on new lines. Raises Lost when one is silent or stuck.

        The rank to blame is one that does not answer; else the one furthest behind, for the others wait for it.
        """
        import ray

        asked = {
            group.workers[rank].status.remote(self.seen if rank == 0 else 0): rank for rank in sorted(running | {0})
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=min(5.0, self.stall))
        beats = {}
        now = time.monotonic()
        for future in ready:
            rank = asked[future]
            try:
                beats[rank] = ray.get(future)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                raise Lost(f"rank {rank} died: {_first_line(error)}") from error
            self.heard[rank] = (now, beats[rank]["stage"], beats[rank]["step"])
        for line in beats.get(0, {}).get("lines", []):
            self.show(line)
            self.seen += 1
        stuck = {
            rank: beat
            for rank, beat in beats.items()
            if rank in running
            and beat["seconds"] > (max(self.stall, SETTING_UP) if beat["stage"] in SLOW else self.stall)
        }
        silent = [rank for rank in running if rank not in beats]
        for rank in silent:
            since, stage, step = self.heard.setdefault(rank, (now, "start", 0))
            if stuck or now - since > self.stall:
                raise Lost(
                    f"rank {rank} has not answered for {now - since:.0f} s; it was last in '{stage}' at step {step}"
                )
        if stuck:
            rank, beat = min(stuck.items(), key=lambda item: (item[1]["turns"], -item[1]["seconds"]))
            raise Lost(f"rank {rank} has been in '{beat['stage']}' at step {beat['step']} for {beat['seconds']:.0f} s")
