"""The manifest in docker/ is one that KubeRay takes, and what it starts can run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.recipe import from_mapping

ROOT = Path(__file__).parents[2]
CRD = ROOT.parent / "shared/kuberay/ray.io_rayjobs.yaml"
CONFIG, JOB = yaml.safe_load_all((ROOT / "docker/rayjob.yaml").read_text(encoding="utf-8"))


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


@pytest.mark.skipif(not CRD.is_file(), reason="KubeRay's resource definitions are not here")
def test_the_manifest_fits_kuberays_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is there: the file has 25,000 lines
    versions = yaml.load(CRD.read_text(encoding="utf-8"), loader)["spec"]["versions"]
    schema = closed(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(JOB, schema)
    JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(JOB, schema)
    del JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"]


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
