"""`corpusmill check`: whether this machine, or the cluster that RAY_ADDRESS names, can run recipes, line by line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster import storage
from cluster.errors import CorpusmillError

_GB = 1e9
_LITTLE_DISK, _LITTLE_MEMORY_PER_CPU, _LITTLE_SHM = 10 * _GB, 2 * _GB, 1 * _GB
_RAY_FULL = 0.95
"""Share of its disk above which Ray refuses to write."""


class Finding(NamedTuple):
    """One line: `level` is ok, warning or wrong; `told` says what was found, and what to do if it is not ok."""

    level: str
    what: str
    told: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<9} {self.told}"


Check = Callable[[], "str | Finding"]


def findings(out: str, more: Mapping[str, Check] | None = None) -> Iterator[Finding]:
    """The findings, each as soon as it is known; `more` are checks of a caller's own.

    A check gives the text of what is well or a Finding; what it raises is what is wrong.
    """
    yield _found("python", _python)
    yield from _packages(out)
    checks: dict[str, Check] = {"out": lambda: _out(out), "shm": _shm, "tmp": _tmp, **(more or {})}
    for name, check in {**checks, "torch": _torch, "ray": _ray}.items():
        yield _found(name, check)


def _found(name: str, check: Check) -> Finding:
    try:
        told = check()
    except CorpusmillError as error:
        return Finding("wrong", name, str(error))
    except Exception as error:  # whatever a package or a driver raises is a finding, not the end of the others
        return Finding("wrong", name, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}")
    return told if isinstance(told, Finding) else Finding("ok", name, told)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def _packages(out: str) -> Iterator[Finding]:
    """The packages that corpusmill requires, and those of its extras that are there or that `out` needs."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("corpusmill") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "warning", "packages", "corpusmill is not installed (a checkout?), so its requirements are unknown"
        )
        return
    for extra, install in {
        "": "corpusmill",
        **{name: f"corpusmill[{name}]" for name in ("train", "s3", "cluster")},
    }.items():
        mine = [one for one in wanted if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)]
        have, wrong = [], []
        for one in mine:
            version = _version(one.name)
            if version is None:
                wrong.append(f"{one.name} is missing")
            elif not one.specifier.contains(version, prereleases=True):
                wrong.append(f"{one.name} {version} is not {one.specifier}")
            elif missing := [name for name in _of_extras(one) if _version(name) is None]:
                wrong.append(f"{', '.join(missing)} of {one.name}[{','.join(one.extras)}] missing")
            else:
                have.append(f"{one.name} {version}")
        name = f"[{extra}]" if extra else "packages"
        if not wrong:
            yield Finding("ok", name, ", ".join(have))
        elif not extra or (extra == "s3" and storage.is_s3(out)):
            yield Finding("wrong", name, f"{'; '.join(wrong)}: pip install '{install}'")
        elif have and extra != "cluster":
            yield Finding("warning", name, f"{'; '.join(wrong)}: pip install '{install}' to use it")
        else:
            yield Finding("ok", name, f"not installed; where it is needed: pip install '{install}'")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _of_extras(wanted: Any) -> list[str]:
    """Packages that a requirement's own extras ask for: ray[default]."""
    from packaging.requirements import Requirement

    given = [Requirement(text) for text in importlib.metadata.requires(wanted.name) or []] if wanted.extras else []
    return [
        one.name
        for one in given
        if one.marker
        and any(one.marker.evaluate({"extra": e}) for e in wanted.extras)
        and not one.marker.evaluate({"extra": ""})
    ]


def _out(out: str) -> str | Finding:
    """Takes conditional writes, and has room."""
    if storage.is_s3(out):
        storage.check_writable(out)
        return f"{out} takes conditional puts (If-None-Match) and gives them back"
    folder = Path(storage.absolute(out))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    storage.check_writable(str(folder))
    made = folder
    while made != there:  # what was made to try it
        made.rmdir()
        made = made.parent
    free = shutil.disk_usage(there).free
    if free < _LITTLE_DISK:
        return Finding(
            "warning", "out", f"{out} is writable, but {free / _GB:.1f} GB are free; give --out a larger disk"
        )
    return f"{out} is writable, {free / _GB:,.0f} GB are free"


def _shm() -> str | Finding:
    """Shared memory: Ray's object store lies there, and what NCCL passes between the GPUs of a machine."""
    if not os.path.isdir("/dev/shm"):
        return "no /dev/shm on this system"
    size = shutil.disk_usage("/dev/shm").total
    if size < _LITTLE_SHM:
        advice = "docker run --shm-size=1g (8g to train), in Kubernetes an emptyDir of medium Memory"
        return Finding("warning", "shm", f"/dev/shm has {size / _GB:.2f} GB, so that Ray uses the disk: {advice}")
    return f"/dev/shm has {size / _GB:.1f} GB"


def _tmp() -> str | Finding:
    folder = os.environ.get("RAY_TMPDIR") or "/tmp"
    usage = shutil.disk_usage(folder)
    free = f"{folder} (Ray's files) has {usage.free / _GB:,.1f} GB free"
    if not os.access(folder, os.W_OK):
        return Finding("wrong", "tmp", f"{folder} (Ray's files) is not writable; set RAY_TMPDIR to a folder that is")
    if usage.used > _RAY_FULL * usage.total:
        return Finding(
            "warning", "tmp", f"{free}; Ray warns and stops spilling above 95 %: set RAY_TMPDIR to a larger disk"
        )
    return free


def _torch() -> str | Finding:
    """torch, and what of CUDA and NCCL it can use: a product is computed on every GPU."""
    driver = os.path.exists("/dev/nvidiactl")
    if importlib.util.find_spec("torch") is None:
        return "not installed: recipes of `run` alone" + (
            "; for the GPU: pip install 'corpusmill[train]'" if driver else ""
        )
    import torch

    if not torch.cuda.is_available():
        about = f"{torch.__version__} without CUDA: training runs on CPUs, over gloo"
        if driver:
            return Finding("wrong", "torch", f"{about}, though there is a GPU; install torch for its driver's CUDA")
        return about
    names = []
    for number in range(torch.cuda.device_count()):
        square = torch.ones(64, 64, device=f"cuda:{number}")
        if float((square @ square)[0, 0]) != 64:
            return Finding("wrong", "torch", f"GPU {number} computes a wrong product; look at nvidia-smi -q and dmesg")
        card = torch.cuda.get_device_properties(number)
        names.append(f"{card.name} {card.total_memory / _GB:.0f} GB")
    cuda = f"{torch.__version__}, CUDA {torch.version.cuda}: {', '.join(names)}"
    if not torch.distributed.is_nccl_available():
        return Finding(
            "wrong" if len(names) > 1 else "warning", "torch", f"{cuda}; built without NCCL, which several GPUs need"
        )
    return f"{cuda}; NCCL {'.'.join(str(part) for part in torch.cuda.nccl.version())}"


def _ray() -> str | Finding:
    """Starts or joins Ray, and runs a task on every node."""
    from cluster import ray as own

    own.start()
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        total, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
        here = _probe()
        probe = ray.remote(num_cpus=0)(_probe)
        asked = {
            f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})": probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=120)
        if silent := [name for name, answer in asked.items() if answer not in ready]:
            return Finding(
                "wrong", "ray", f"no worker of {', '.join(silent)} ran a task within 120 s; see its raylet's log"
            )
        for name, answer in asked.items():
            if (there := ray.get(answer)) != here:
                return Finding("wrong", "ray", f"{name} has {there}, this machine {here}; use one image")
        cpus, memory = total.get("CPU", 0.0), total.get("memory", 0.0)
        joined = os.environ.get("RAY_ADDRESS")
        about = f"{ray.__version__} {f'joined at {joined}' if joined else 'starts here'}, nodes: {len(nodes)}"
        about += f"; {cpus:g} CPUs, {total.get('GPU', 0.0):g} GPUs, {memory / _GB:.1f} GB of memory"
        if memory < _LITTLE_MEMORY_PER_CPU * cpus:
            return Finding("warning", "ray", f"{about}; less than 2 GB per CPU: set memory_per_worker or fewer workers")
        return about
    finally:
        own.stop()


def _probe() -> str:
    """What a worker of a node says; one that cannot import corpusmill fails here."""
    return f"Python {platform.python_version()} with NumPy {_version('numpy')}"
