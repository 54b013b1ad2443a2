"""`corpusmill submit`: a recipe as a job of a Ray cluster that runs elsewhere, its log here, its exit code ours."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.errors import RecipeError, RunError
from cluster.settings import command_for, read_yaml

_POLL_S, _UNREACHABLE_S = 1.0, 60.0
_LEFT_OUT = ("runs", ".venv", ".git", "__pycache__")


def entrypoint(recipe: str, out: str, assignments: Sequence[str] = ()) -> list[str]:
    """The command that executes a recipe elsewhere. Raises RecipeError for one that has none, or an `out` of here."""
    verb = command_for(read_yaml(recipe))
    if verb not in ("run", "train"):
        raise RecipeError(f"{recipe}: a recipe of `corpusmill {verb}`; jobs take those of `run` and `train`")
    if verb == "train" and storage.is_s3(out):
        raise RecipeError(
            f"--out {out}: a training run's folder is local (`checkpoints: s3://…` puts what resuming needs into a "
            "bucket); give the absolute path of a disk that all nodes share"
        )
    if not storage.is_s3(out) and not os.path.isabs(out):
        raise RecipeError(
            f"--out {out}: the job runs on another machine, where this is another folder or none; "
            "give s3://… or the absolute path of a disk that all nodes share"
        )
    changes = [part for assignment in assignments for part in ("--set", assignment)]
    return ["corpusmill", verb, recipe, "--out", out, *changes]


def submit(
    recipe: str, address: str, out: str, *, assignments: Sequence[str] = (), working_dir: str | None = None
) -> int:
    """Submit, stream the log to stdout, and give the job's exit code.

    `working_dir` is uploaded and is the job's current folder; by default that is the current folder if the recipe lies
    below it, else the recipe's own. The token of a cluster with authentication is RAY_AUTH_TOKEN or ~/.ray/auth_token.
    """
    command = entrypoint(recipe, out, assignments)
    folder, name = _inside(Path(recipe), working_dir)
    command[2] = name
    logging.disable(logging.INFO)  # Ray's client tells of uploads and connections
    client = _client(address)
    job = _taken(client, address, shlex.join(command), folder)
    print(f"job {job} at {address}: {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        return _followed(client, job, address)
    except KeyboardInterrupt:
        at = f"--address {address} {job}"
        print(
            f"corpusmill: no longer listening; the job goes on: `ray job logs -f {at}`, `ray job stop {at}`",
            file=sys.stderr,
        )
        return 130


def _taken(client: Any, address: str, command: str, folder: str) -> str:
    """The job's name; a cluster whose agents are still starting is asked again."""
    deadline = time.monotonic() + _UNREACHABLE_S
    while True:
        try:
            made: str = client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": folder, "excludes": [f"{one}/" for one in _LEFT_OUT]},
            )
            return made
        except Exception as error:
            if "try again later" not in str(error) or time.monotonic() > deadline:
                raise RunError(f"{address} did not take the job (working dir {folder}): {_line(error)}") from error
        time.sleep(_POLL_S)


def _inside(recipe: Path, working_dir: str | None) -> tuple[str, str]:
    """The folder to upload, and the recipe's path in it."""
    here = Path.cwd()
    folder = Path(working_dir).resolve() if working_dir else here if _below(recipe, here) else recipe.resolve().parent
    if not _below(recipe, folder):
        raise RecipeError(f"{recipe} is not below --working-dir {folder}, so the job would not find it")
    return str(folder), recipe.resolve().relative_to(folder.resolve()).as_posix()


def _below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _client(address: str) -> Any:
    """A client of the job server. Raises RunError, with what to do."""
    if not address.startswith(("http://", "https://")):
        raise RecipeError(f"--address {address}: give the URL of the cluster's dashboard, http://HEAD:8265")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # or RAY_ADDRESS would win over what was asked for
    try:
        import aiohttp  # noqa: F401
        import requests  # noqa: F401
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise RunError(f"submit needs the package {error.name}: pip install 'corpusmill[cluster]'") from error
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        if type(error).__name__ == "AuthenticationError":
            raise RunError(
                f"{address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token"
            ) from error
        hint = "is it the dashboard's address, with ray[default] on the head, and does its port let you in?"
        raise RunError(f"no job server at {address}: {_line(error)}; {hint}") from error


def _line(error: Exception) -> str:
    """An error in one line; Ray's carry the traceback of a server."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def _followed(client: Any, job: str, address: str) -> int:
    """Print the log until the job has ended; a connection that breaks is taken up where it was."""
    shown, lost = [0], None
    while True:
        try:
            asyncio.run(_tail(client, job, shown))
            info = client.get_job_info(job)
            lost = None
        except Exception as error:  # aiohttp's, requests' and Ray's: all mean that nobody answers
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _UNREACHABLE_S:
                raise RunError(
                    f"{address} has not answered for {_UNREACHABLE_S:g} s ({_line(error)}); job {job} may go on: "
                    f"ray job status --address {address} {job}"
                ) from error
        else:
            if info.status.is_terminal():
                return _exit_code(info, job)
        time.sleep(_POLL_S)


async def _tail(client: Any, job: str, shown: list[int]) -> None:
    """Print what lies behind the first shown[0] characters of a job's log, until it ends; keeps count."""
    seen = 0
    async for text in client.tail_job_logs(job):
        print(text[max(0, shown[0] - seen) :], end="", flush=True)
        seen += len(text)
        shown[0] = max(shown[0], seen)


def _exit_code(info: Any, job: str) -> int:
    """The command's own, as a shell has it; 1 for a job that Ray ended or could not start."""
    if str(info.status) == "SUCCEEDED":
        return 0
    print(f"corpusmill: job {job} {info.status.lower()}: {_line(Exception(info.message))}", file=sys.stderr)
    code = info.driver_exit_code or 1
    return int(code) if code > 0 else 128 - int(code)
