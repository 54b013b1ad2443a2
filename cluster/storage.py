"""Local paths and s3:// through one door: small objects by boto3 or the disk, Parquet by pyarrow's file systems.

Settings for S3 come from the environment alone (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …). Checksums that S3
itself does not require are off, because many S3-compatible servers refuse the trailers the SDKs now add.
"""

from __future__ import annotations

import functools
import os
import posixpath
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import DataError, RecipeError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs

_WILD = "*?[{"


@dataclass(frozen=True)
class Entry:
    """A file: its path as given, its size in bytes, and a token that changes with its content (mtime or ETag)."""

    path: str
    size: int
    version: str


def is_s3(path: str) -> bool:
    return path.startswith("s3://")


def join(folder: str, *names: str) -> str:
    return posixpath.join(str(folder), *names)


def absolute(path: str) -> str:
    """The path made absolute, so that it means the same in every process; s3:// stays as it is."""
    return path.rstrip("/") if is_s3(path) else os.path.abspath(os.path.expanduser(path))


def filesystem(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow file system for a path, and the path inside it."""
    from pyarrow import fs

    if not is_s3(path):
        return fs.LocalFileSystem(use_mmap=False), path
    return _s3_filesystem(), path.removeprefix("s3://")


@functools.cache
def _s3_filesystem() -> pyarrow.fs.FileSystem:
    from pyarrow import fs

    # the SDK below pyarrow reads these two: its trailers have no Content-Length, which Ceph's gateway refuses (411)
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    scheme, _, host = endpoint.partition("://")
    options: dict[str, Any] = {"allow_bucket_creation": False, "check_directory_existence_before_creation": True}
    if host:
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    if os.environ.get("CORPUSMILL_S3_ANONYMOUS") == "1":
        options["anonymous"] = True
    return fs.S3FileSystem(**options)


@functools.cache
def _s3_client() -> Any:
    try:
        import boto3
    except ImportError:
        raise RecipeError("s3:// paths need boto3: pip install 'corpusmill[s3]'") from None
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        retries={"max_attempts": 8, "mode": "adaptive"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=10,
        read_timeout=60,
        **({"signature_version": UNSIGNED} if os.environ.get("CORPUSMILL_S3_ANONYMOUS") == "1" else {}),
    )
    return boto3.client("s3", config=config)


def _bucket_key(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    return bucket, key


def read_bytes(path: str) -> bytes:
    """All bytes of a small object. Raises FileNotFoundError."""
    if not is_s3(path):
        return Path(path).read_bytes()
    bucket, key = _bucket_key(path)
    client = _s3_client()
    try:
        return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    except client.exceptions.NoSuchKey:
        raise FileNotFoundError(path) from None


def write_bytes(path: str, data: bytes) -> None:
    """Replace an object atomically: a reader sees the old bytes or the new ones, never a part."""
    if is_s3(path):
        bucket, key = _bucket_key(path)
        _s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(temporary, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def put_if_absent(path: str, data: bytes) -> bool:
    """Create an object unless it exists; False when somebody was first. This is the commit of a partition.

    Locally a hard link to a file written aside, on S3 a conditional put (If-None-Match: *).
    """
    if is_s3(path):
        bucket, key = _bucket_key(path)
        client = _s3_client()
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return False
            raise
        return True
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(temporary, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def exists(path: str) -> bool:
    """Whether a file (or, locally, a folder) is there."""
    if not is_s3(path):
        return os.path.exists(path)
    bucket, key = _bucket_key(path)
    client = _s3_client()
    try:
        client.head_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return True


def list_files(folder: str) -> Iterator[Entry]:
    """Every file below a folder, in order of path; nothing when there is no such folder.

    Links that lead nowhere, pipes and sockets are no files: they have no content, and opening a pipe would hang.
    """
    if is_s3(folder):
        bucket, prefix = _bucket_key(folder.rstrip("/") + "/")
        for page in _s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield Entry(f"s3://{bucket}/{item['Key']}", int(item["Size"]), item["ETag"].strip('"'))
        return
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.isfile(path := join(here, name)):
                yield entry(path)


def entry(path: str) -> Entry:
    """Size and version of one file. Raises FileNotFoundError."""
    if is_s3(path):
        bucket, key = _bucket_key(path)
        client = _s3_client()
        try:
            head = client.head_object(Bucket=bucket, Key=key)
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                raise FileNotFoundError(path) from None
            raise
        return Entry(path, int(head["ContentLength"]), head["ETag"].strip('"'))
    stat = os.stat(path)
    return Entry(path, stat.st_size, str(stat.st_mtime_ns))


def find(pattern: str) -> list[tuple[str, Entry]]:
    """Files for a path, folder or glob (`*`, `?`, `[…]`, `{…,…}`, `**`), with their names relative to the fixed part.

    The relative name does not change when the whole set is moved, so identities can be made from it.
    """
    pattern = absolute(pattern)
    wild = min((pattern.find(c) for c in _WILD if c in pattern), default=-1)
    if wild < 0:
        return _named(pattern)
    root = pattern[:wild].rpartition("/")[0]
    matches = _glob_regex(pattern)
    found = [(e.path[len(root) + 1 :], e) for e in list_files(root) if matches.fullmatch(e.path)]
    return found or _named(pattern)  # a name may have such a character


def takes_in(pattern: str, path: str) -> bool:
    """Whether `find` would give the file `path`, were it there."""
    pattern, path = absolute(pattern), absolute(path)
    if any(c in pattern for c in _WILD) and _glob_regex(pattern).fullmatch(path):
        return True
    return f"{path}/".startswith(f"{pattern}/")


def _named(path: str) -> list[tuple[str, Entry]]:
    """The file of this very name, or the files of the folder."""
    if is_s3(path):
        below = [(e.path[len(path) + 1 :], e) for e in list_files(path)]
        if below or not exists(path):
            return below
        return [(posixpath.basename(path), entry(path))]
    if os.path.isdir(path):
        return [(e.path[len(path) + 1 :], e) for e in list_files(path)]
    return [(os.path.basename(path), entry(path))] if os.path.exists(path) else []


def _glob_regex(pattern: str) -> Any:
    import re

    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 2 :]:
            end = pattern.index("]", i + 2)
            inner = re.sub(r"([\\\[&~|])", r"\\\1", pattern[i + 1 : end])
            out, i = out + "[" + ("^" + inner[1:] if inner[0] == "!" else inner) + "]", end + 1
        elif pattern[i] == "{" and "}" in pattern[i:]:
            end = pattern.index("}", i)
            either = [_glob_regex(part).pattern for part in pattern[i + 1 : end].split(",")]
            out, i = out + f"(?:{'|'.join(either)})", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise RecipeError(f"{pattern}: not a glob: {error}") from None


def open_read(path: str) -> pa.NativeFile:
    """A seekable input stream."""
    fs, inner = filesystem(path)
    return fs.open_input_file(inner)


def open_write(path: str) -> pa.NativeFile:
    """An output stream; folders are made. What is written may be seen in part: commit names by put_if_absent."""
    fs, inner = filesystem(path)
    if not is_s3(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return fs.open_output_stream(inner)


def copy(source: str, target: str) -> None:
    """The same bytes under a second name: a hard link where the disk allows, a server-side copy on S3.

    Between disk and S3 the target appears when it is whole, or not at all.
    """
    if is_s3(source) and is_s3(target):
        (from_bucket, from_key), (bucket, key) = _bucket_key(source), _bucket_key(target)
        _s3_client().copy({"Bucket": from_bucket, "Key": from_key}, bucket, key)
        return
    if is_s3(target):
        _s3_client().upload_file(source, *_bucket_key(target))
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    if is_s3(source):
        _s3_client().download_file(*_bucket_key(source), target)
        return
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def delete(path: str) -> None:
    """Remove a file; absent is fine."""
    if is_s3(path):
        bucket, key = _bucket_key(path)
        _s3_client().delete_object(Bucket=bucket, Key=key)
        return
    Path(path).unlink(missing_ok=True)


def check_writable(folder: str) -> None:
    """Prove that a folder takes conditional writes and gives them back. Raises DataError with the cause."""
    probe = join(folder, f".corpusmill-probe-{uuid.uuid4().hex}")
    try:
        honoured = put_if_absent(probe, b"1") and not put_if_absent(probe, b"2") and read_bytes(probe) == b"1"
        delete(probe)
    except OSError as error:
        raise DataError(f"{folder}: cannot write there: {error}") from error
    except Exception as error:
        if (told := s3_error(error)) is None:
            raise
        raise DataError(f"{folder}: cannot write there: {told}") from error
    if not honoured:
        raise DataError(f"{folder}: the storage does not honour conditional writes (If-None-Match), which commits need")


_ADVICE = {
    "NoSuchBucket": "make the bucket first",
    "AccessDenied": "the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY do not allow it",
    "InvalidAccessKeyId": "look at AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "look at AWS_SECRET_ACCESS_KEY",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "EndpointConnectionError": "look at AWS_ENDPOINT_URL",
}


def s3_error(error: BaseException) -> str | None:
    """What an exception of the S3 client says, and the next move; None for any other exception."""
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is None:
        return None
    if isinstance(error, botocore.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        told = f"S3 answers {code or 'an error'} to {error.operation_name}"
    elif isinstance(error, botocore.BotoCoreError):
        code, told = type(error).__name__, str(error)
    else:
        return None
    return told + (f"; {_ADVICE[code]}" if code in _ADVICE else "")
