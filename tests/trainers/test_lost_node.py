"""A machine that dies, not only a process: two Ray nodes with a worker each, one of them killed in the middle."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainers.log import read_metrics
from trainers.train import train

ROOT = Path(__file__).parents[2]

LOSE = """
import json, sys, threading, time
from pathlib import Path
import psutil
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from trainers.log import read_metrics
from trainers.train import train

recipe, out, again = json.load(open(sys.argv[1]))
# a node is dead after 2.5 s of refused connections (Ray's default: 15 s), or 10 s without an answer
health = {"initial_delay_ms": 0, "period_ms": 500, "timeout_ms": 2000, "failure_threshold": 5}
health = {f"health_check_{name}": value for name, value in health.items()}
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": health}
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, namespace="corpusmill", log_to_driver=False)
nodes = []

def strike():
    while len(read_metrics(out)) < 12:
        time.sleep(0.01)
    pids = json.loads(Path(out, "workers.json").read_text())["pids"]
    nodes.append(len({psutil.Process(pid).ppid() for pid in pids}))  # each under its node's raylet
    cluster.remove_node(other, allow_graceful=False)
    if again:
        cluster.add_node(num_cpus=1)

striker = threading.Thread(target=strike, daemon=True)
striker.start()
report = train(recipe, out, Console())
striker.join()
print(json.dumps({"restarts": report.restarts, "nodes": nodes[0]}))
ray.shutdown()
cluster.shutdown()
"""


def lose(recipe, out, again):
    (out.parent / "job.json").write_text(json.dumps([recipe, str(out), again]))
    command = [sys.executable, "-c", LOSE, str(out.parent / "job.json")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    # in a folder of its own: Ray would tell every other program that starts here of this cluster
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as own:
        environment["RAY_TMPDIR"] = own
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("again", [False, True])
def test_a_run_goes_on_without_the_node_that_died_or_with_one_that_came(recipe, tmp_path, crew, again):
    long = recipe(workers=2, steps=120, checkpoint_every=10, export=False)
    done = lose(long, tmp_path / "run", again)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    last = next(line for line in reversed(said) if line.startswith("{"))  # Ray too may have words about the node
    assert any("restart 1 of 3 from the last checkpoint" in line for line in said)
    assert json.loads(last) == {"restarts": 1, "nodes": 2}
    whole = train(long, str(tmp_path / "whole"), crew=crew)
    assert {
        line["step"]: line["loss"] for line in read_metrics(str(tmp_path / "run")) if "loss" in line
    } == whole.losses
