"""The manifest in docker/ is one that KubeRay takes, and what it starts can run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import corpusmill
from pipeline.recipe import from_mapping

ROOT = Path(__file__).parents[2]
CRD = ROOT.parent / "shared/kuberay/ray.io_rayjobs.yaml"
MANIFEST = (ROOT / "docker/rayjob.yaml").read_text(encoding="utf-8")
CONFIG, JOB = yaml.safe_load_all(MANIFEST)
ON_CPUS = [path.name for path in (ROOT / "recipes").glob("*.yaml") if "device: cpu" in path.read_text(encoding="utf-8")]


def closed(node: Any) -> Any:
    """A Kubernetes schema as JSON schema that refuses unknown fields, as the API server does with `strict`."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in made and isinstance(made["properties"], dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", bool(made.get("x-kubernetes-preserve-unknown-fields", False)))
    return made


@pytest.fixture(scope="module")
def kuberay() -> Any:
    """A validator by KubeRay's schema of a RayJob."""
    jsonschema = pytest.importorskip("jsonschema")
    if not CRD.is_file():
        pytest.skip("KubeRay's resource definitions are not here")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is there: the file has 25,000 lines
    versions = yaml.load(CRD.read_text(encoding="utf-8"), loader)["spec"]["versions"]
    made = closed(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])
    made["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(made)


def printed(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What `corpusmill kube` prints."""
    assert corpusmill.main(["kube", *map(str, command)]) == 0
    return capsys.readouterr().out


def test_the_manifest_is_what_kube_prints(capsys: pytest.CaptureFixture[str]) -> None:
    made = printed(capsys, ROOT / "docker/corpus.yaml", "--out", "s3://corpus/run", "--image", "corpusmill")
    assert made == MANIFEST


def test_the_manifest_fits_kuberays_schema(kuberay: Any) -> None:
    kuberay.validate(JOB)
    JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    (error,) = kuberay.iter_errors(JOB)
    assert "rayStartParam" in error.message
    del JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"]


def test_every_recipe_of_run_and_train_becomes_a_job_that_fits(
    kuberay: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rules.py").write_text("def rule(doc):\n    return None\n")
    verbs = set()
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        options = ["--out", "/mnt/runs/x", "--image", "i", "--volume", "shared=/mnt", "--file", tmp_path / "rules.py"]
        config, job = yaml.safe_load_all(printed(capsys, path, *options))
        kuberay.validate(job)
        assert yaml.safe_load(config["data"][path.name]) == yaml.safe_load(path.read_text(encoding="utf-8"))
        assert "rules.py" in config["data"]
        group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        trains = job["spec"]["entrypoint"].startswith("corpusmill train ")
        (worker,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in worker["resources"]["limits"]) == (trains and path.name not in ON_CPUS), path.name
        assert {"name": "shared", "mountPath": "/mnt"} in worker["volumeMounts"]
        verbs.add(trains)
    assert verbs == {False, True}


def test_nodes_and_memory_follow_from_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", "workers=100", "--set", "memory_per_worker=4GB", "--secret", ""]
    made = printed(capsys, ROOT / "docker/corpus.yaml", "--out", "s3://b/r", "--image", "i", "--cpus", 32, *changes)
    _, job = yaml.safe_load_all(made)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 4  # 100 workers on nodes of 32 cores
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "32", "memory": "256Gi"}
    assert "envFrom" not in worker
    assert job["spec"]["entrypoint"].endswith("--set workers=100 --set memory_per_worker=4GB")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--out", "runs/x"], "--out runs/x: the job runs on another machine"),
        (["--out", "/data/x"], "--out /data/x: goes with its pod; give s3://… or a folder of a volume"),
        (["--out", "s3://b/r", "--name", "Mine"], "--name Mine: expected at most 47 lower-case letters"),
        (["--out", "s3://b/r", "--memory", "64 GB"], "--memory 64 GB: expected a quantity of Kubernetes, 64Gi say"),
        (["--out", "s3://b/r", "--volume", "shared"], "--volume shared: expected CLAIM=/path"),
        (["--out", "s3://b/r", "--file", str(ROOT / "pipeline/extract/main_content.npz")], "main_content.npz: no text"),
        (["--out", "s3://b/r", "--nodes", "0"], "--nodes 0: expected at least 1"),
        (["--out", "s3://b/r", "--set", "dedup.minhash.band=3"], "did you mean 'bands'"),
    ],
)
def test_what_cannot_run_there_is_refused(capsys: pytest.CaptureFixture[str], more: list[str], told: str) -> None:
    assert corpusmill.main(["kube", str(ROOT / "docker/corpus.yaml"), "--image", "i", *more]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert not said.out


def test_its_recipe_is_one_and_lies_where_the_entrypoint_looks() -> None:
    (name, text), *others = CONFIG["data"].items()
    assert not others
    assert from_mapping(yaml.safe_load(text)).steps  # `plan` would look into the bucket
    assert f"corpusmill run /recipes/{name} --out s3://" in JOB["spec"]["entrypoint"]
    head = JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert mounts["recipe"] == "/recipes"
    assert {"name": "recipe", "configMap": {"name": CONFIG["metadata"]["name"]}} in head["volumes"]


def test_its_ray_is_the_one_of_the_image() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


@pytest.mark.parametrize("image", ["pipeline", "trainers"])
def test_an_image_is_given_all_that_its_build_needs(image: str) -> None:
    lines = (ROOT / f"docker/{image}.Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
