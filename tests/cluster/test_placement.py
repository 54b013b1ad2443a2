import subprocess
import sys

import pytest

from cluster import placement
from cluster.errors import RunError


def test_every_worker_gets_its_bundle_and_gives_it_back(ray_cluster):
    import ray

    group = placement.place(2)
    assert [bundle["CPU"] for bundle in group.bundle_specs] == [1.0, 1.0]
    placement.release(group)
    again = placement.place(2, timeout=30)
    placement.release(again)
    assert ray.cluster_resources()["CPU"] >= 2


ALONE = """
from cluster import placement, ray
ray.start(2)
group = placement.place(5)
print(len(group.bundle_specs), sum(bundle["CPU"] for bundle in group.bundle_specs) <= 2)
placement.release(group)
ray.stop()
"""


def test_more_workers_than_cpus_share_them():
    """In a Ray of its own: in that of the session, workers of other tests hold CPUs."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "True"]


def test_missing_gpus_are_named(ray_cluster):
    with pytest.raises(RunError, match="2 workers need 2000 GPUs, the cluster has 0"):
        placement.place(2, gpus_each=1000)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_container_is_as_wide_as_its_quota(tmp_path, monkeypatch, files, expected):
    import os

    from cluster.ray import cores

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cores(str(tmp_path)) == expected
