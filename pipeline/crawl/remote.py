"""Files behind http(s):// beside those that storage knows: lists of archive paths, and streams read in ranges.

A Common Crawl path list (`warc.paths.gz`: one path a line) stands for the files it names. A stream asks for a range
at a time, so that a broken connection costs the rest of one range and nothing is read twice by the caller.
"""

from __future__ import annotations

import gzip
import http.client
import io
import re
import time
import urllib.error
import urllib.request
import zlib
from typing import TYPE_CHECKING

from cluster import storage
from cluster.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

COMMON_CRAWL = "https://data.commoncrawl.org/"
_RANGE = 8 << 20
_TRIES = 6
_LIST = re.compile(r"\.paths(\.gz)?$")
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_MOST_LIST_BYTES = 256 << 20


def is_remote(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def find(pattern: str, prefix: str = COMMON_CRAWL) -> list[tuple[str, storage.Entry]]:
    """As storage.find, for http(s) URLs and path lists too. Names in a list that are no URLs are put behind `prefix`.

    The size of a remote file is given as 0: nobody asks a server 90,000 times before the start.
    """
    if not _LIST.search(pattern):
        if not is_remote(pattern):
            return storage.find(pattern)
        return [(pattern.partition("?")[0].rpartition("/")[2], storage.Entry(pattern, 0, ""))]
    lists = [pattern] if is_remote(pattern) else [entry.path for _, entry in storage.find(pattern)]
    found: list[tuple[str, storage.Entry]] = []
    for place in lists:
        for name in _names(place):
            whole = name if is_remote(name) or storage.is_s3(name) or name.startswith("/") else prefix + name
            found.append((name, storage.Entry(whole, 0, "")))
    return found


def _names(place: str) -> list[str]:
    with open_read(place) as stream:
        data = stream.read(_MOST_LIST_BYTES)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(_MOST_LIST_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{place}: the list of paths is damaged: {error}") from None
    return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]


def open_read(path: str) -> pa.NativeFile:
    """A seekable input stream of a local, s3:// or http(s):// file."""
    if not is_remote(path):
        return storage.open_read(path)
    import pyarrow as pa

    return pa.PythonFile(Ranges(path), mode="r")


class Ranges(io.RawIOBase):
    """A remote file, read by range requests, each tried again with growing pauses.

    Raises DataError when the server does not answer in the end, has no such file, or when the file changes while it
    is read. A server that knows no ranges is read in one stream, and from the start again after a break or a seek.
    """

    def __init__(self, url: str, *, tries: int = _TRIES, pause: float = 1.0, timeout: float = 60.0):
        super().__init__()
        self._url, self._tries, self._pause, self._timeout = url, tries, pause, timeout
        self._at = 0
        self._size: int | None = None
        self._version: str | None = None
        self._data, self._start = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            if self._size is None:
                self._fill()
            offset += self._size or 0
        self._at = max(0, offset + (self._at if whence == io.SEEK_CUR else 0))
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        parts: list[bytes] = []
        left = -1 if size is None else size
        while left:
            inside = self._at - self._start
            if not 0 <= inside < len(self._data):
                if self._size is not None and self._at >= self._size:
                    break
                self._fill()
                inside = self._at - self._start
                if not 0 <= inside < len(self._data):
                    break
            part = self._data[inside:] if left < 0 else self._data[inside : inside + left]
            parts.append(part)
            self._at += len(part)
            left -= len(part) if left > 0 else 0
        return b"".join(parts)

    def readall(self) -> bytes:
        return self.read()

    def _fill(self) -> None:
        """Fetch the range at the position."""
        problem = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(min(_LONGEST_WAIT, max(self._pause * 2 ** (attempt - 1), self._asked)))
            self._asked = 0.0
            try:
                if self._request():
                    return
                problem = "the connection broke off"
            except urllib.error.HTTPError as error:
                if error.code == 416:  # at the end of the file
                    self._size = self._at if self._size is None else self._size
                    return
                if error.code not in _AGAIN:
                    raise DataError(f"{self._url}: the server answers {error.code} {error.reason}") from None
                after = error.headers.get("Retry-After", "")
                self._asked = float(after) if after.isdigit() else 0.0
                problem = f"the server answers {error.code}"
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
        raise DataError(f"{self._url}: cannot be read at byte {self._at} after {self._tries} tries: {problem}")

    _asked = 0.0

    def _request(self) -> bool:
        headers = {
            "Range": f"bytes={self._at}-{self._at + _RANGE - 1}",
            "User-Agent": "corpusmill/0.1",
            "Accept-Encoding": "identity",
        }
        request = urllib.request.Request(self._url, headers=headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if self._version is not None and version != self._version:
                raise DataError(f"{self._url}: the file changed while it was read ({self._version} → {version})")
            self._version = version
            if response.status == 206:
                start, size = self._at, response.headers.get("Content-Range", "").rpartition("/")[2]
                self._size = int(size) if size.isdigit() else self._size
                wanted = min(_RANGE, (self._size or 1 << 62) - start)
                data = response.read(_RANGE)
            else:  # no ranges here: pass over what is before
                start, left = self._at, self._at
                while left and (passed := response.read(min(left, 1 << 20))):
                    left -= len(passed)
                length = response.headers.get("Content-Length", "")
                self._size = int(length) if length.isdigit() else None
                wanted = (self._size - start) if self._size is not None else 0
                data = response.read()
        # a connection that broke off gives less than was promised: what came is kept, the rest is asked for again
        self._data, self._start = data, start
        return bool(data) or wanted <= 0
