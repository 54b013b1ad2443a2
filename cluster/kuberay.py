"""`corpusmill kube`: a recipe as KubeRay's manifests, a ConfigMap with its file and a RayJob with its cluster."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import RecipeError
from cluster.settings import read_yaml
from cluster.submit import entrypoint

_FOLDER = "/recipes"
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTP]i?)?")

_ABOUT = """\
# Made by `corpusmill kube`; `kubectl apply -f` takes it. The image is that of docker/{image}.Dockerfile, in a
# registry of yours. The secret holds AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ….
# A pod that goes costs nothing that was committed: backoffLimit starts the same command again, which goes on where it
# was. The head hands out work and does none (num-cpus: 0).
"""


def manifests(
    recipe: str, out: str, image: str, *, assignments: Sequence[str] = (), name: str | None = None,
    nodes: int | None = None, cpus: int = 16, memory: str | None = None, gpus: int | None = None,
    secret: str = "s3-keys", claims: Sequence[str] = (), files: Sequence[str] = (),
) -> str:  # fmt: skip
    """The manifests as YAML. Raises RecipeError for what cannot run.

    Unless given, `nodes` follow from the recipe's `workers` (a core each, or a GPU each to train), else 4, or 1 to
    train; `memory` of a node is twice memory_per_worker for each core, for models and Python need as much again, and to
    train 64Gi for each GPU. `claims` are CLAIM=/path of volumes that all nodes share; `files` lie beside the recipe,
    and all nodes can import them: rules of the user's own.
    """
    command = entrypoint(recipe, out, assignments)
    raw, trains = read_yaml(recipe), command[1] == "train"
    volumes = dict(_claim(text) for text in claims)
    if out.startswith("/") and not any(f"{out}/".startswith(f"{path.rstrip('/')}/") for path in volumes.values()):
        raise RecipeError(f"--out {out}: goes with its pod; give s3://… or a folder of a volume (--volume CLAIM=/path)")
    name = name or re.sub(r"[^a-z0-9]+", "-", Path(recipe).stem.lower()).strip("-")[:40]
    if not _NAME.fullmatch(name):
        raise RecipeError(f"--name {name}: expected at most 47 lower-case letters, digits and -, the first a letter")
    gpus = (1 if gpus is None and raw.get("device") != "cpu" else gpus or 0) if trains else gpus or 0
    asked = _assigned(raw, assignments)
    if nodes is None:
        workers = asked.get("workers", "auto")
        each = gpus or cpus
        nodes = max(1, math.ceil(workers / max(1, each))) if isinstance(workers, int) else 1 if trains else 4
    for option, value, least in (("nodes", nodes, 1), ("cpus", cpus, 1), ("gpus", gpus, 0)):
        if value < least:
            raise RecipeError(f"--{option} {value}: expected at least {least}")
    memory = memory or (f"{64 * max(1, gpus)}Gi" if trains else _memory(asked.get("memory_per_worker", "2GB"), cpus))
    if not _QUANTITY.fullmatch(memory):
        raise RecipeError(f"--memory {memory}: expected a quantity of Kubernetes, 64Gi say")
    command[2] = f"{_FOLDER}/{Path(recipe).name}"
    config = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-recipe"}, "data": _data(recipe, files),
    }  # fmt: skip
    room = {"cpu": str(cpus), "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    head = {"cpu": "2", "memory": "8Gi"}
    pod = _Pod(name, image, secret, volumes)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": shlex.join(command),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 3,
            "rayClusterSpec": {
                "rayVersion": _ray_version(),
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": pod.template("ray-head", head, "2Gi"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu" if gpus else "cpu",
                        "replicas": nodes, "minReplicas": nodes, "maxReplicas": nodes,
                        "rayStartParams": {},
                        "template": pod.template("ray-worker", room, "16Gi" if trains else "4Gi"),
                    }
                ],
            },
        },
    }  # fmt: skip
    about = _ABOUT.format(image="trainers" if trains else "pipeline")
    dumped = yaml.dump_all([config, job], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return about + dumped


class _Pod:
    """What the pods of a job share."""

    def __init__(self, name: str, image: str, secret: str, claims: Mapping[str, str]):
        self.name, self.image, self.secret, self.claims = name, image, secret, claims

    def template(self, container: str, room: dict[str, str], shm: str) -> dict[str, Any]:
        """A pod's template with `room` as request and limit, and `shm` of shared memory at most."""
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "recipe", "mountPath": _FOLDER}]
        volumes: list[dict[str, Any]] = [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
            {"name": "recipe", "configMap": {"name": f"{self.name}-recipe"}},
        ]
        for claim, path in self.claims.items():
            mounts.append({"name": claim, "mountPath": path})
            volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
        one = {
            "name": container,
            "image": self.image,
            "env": [{"name": "PYTHONPATH", "value": _FOLDER}],
            **({"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}),
            "resources": {"requests": dict(room), "limits": dict(room)},
            "volumeMounts": mounts,
        }
        return {"spec": {"containers": [one], "volumes": volumes}}


def _data(recipe: str, files: Sequence[str]) -> dict[str, str]:
    """The files of the ConfigMap by name, the recipe first."""
    made: dict[str, str] = {}
    for path in (recipe, *files):
        name = Path(path).name
        if name in made or not re.fullmatch(r"[-._a-zA-Z0-9]+", name):
            raise RecipeError(f"{path}: another file has that name, or it has others than letters, digits, -, _ and .")
        try:
            made[name] = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RecipeError(f"{path}: no text; put it into a bucket, and its s3:// path into the recipe") from None
    if (size := sum(len(text.encode()) for text in made.values())) > _MOST_BYTES:
        raise RecipeError(f"{recipe} and --file have {size:,} bytes, a ConfigMap takes {_MOST_BYTES:,}: use a bucket")
    return made


def _assigned(raw: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    from cluster.settings import assign

    for assignment in assignments:
        assign(raw, assignment)
    return raw


def _claim(text: str) -> tuple[str, str]:
    claim, _, path = text.partition("=")
    if not _NAME.fullmatch(claim) or not path.startswith("/"):
        raise RecipeError(f"--volume {text}: expected CLAIM=/path")
    return claim, path


def _memory(per_worker: str, cpus: int) -> str:
    found = re.fullmatch(r"\s*([\d.]+)\s*([MG])i?B\s*", str(per_worker))
    gigabytes = (float(found[1]) / (1000 if found[2] == "M" else 1)) if found else 2.0
    return f"{math.ceil(2 * gigabytes * cpus)}Gi"


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, lists below their key indented, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
