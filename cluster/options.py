"""The options of `corpusmill kube`, which are the arguments of `kuberay.manifests`."""

from __future__ import annotations

import argparse


def kube_options(made: argparse.ArgumentParser) -> None:
    """Add them to the verb's parser, behind those of a recipe."""
    made.add_argument("--out", required=True, help="the run's folder: s3://, or below a --volume")
    made.add_argument("--image", required=True, help="of all pods, from docker/")
    made.add_argument("--name", help="of the job; default: the recipe's")
    made.add_argument(
        "--nodes", type=int, help="worker pods; default: enough for the recipe's workers, else 4 (train: 1)"
    )
    made.add_argument("--cpus", type=int, default=16, help="of a worker pod")
    made.add_argument("--gpus", type=int, help="of a worker pod; default: 0 (train: 1)")
    made.add_argument("--memory", help="of a worker pod, 64Gi say; default: by the recipe's memory_per_worker")
    made.add_argument("--secret", default="s3-keys", help="whose AWS_* variables the pods get; '' for none")
    made.add_argument(
        "--volume", action="append", default=[], metavar="CLAIM=/PATH", dest="claims", help="a claim all pods mount"
    )
    made.add_argument(
        "--file", action="append", default=[], dest="files", help="to lie beside the recipe: rules of yours"
    )
