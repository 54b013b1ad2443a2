"""Telling a damaged compressed stream from storage that fails: the first costs rows, the second is tried again."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib

DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What readers of compressed streams raise."""

_WORDS = re.compile("inflate|decompress|Truncated|Invalid data stream|CRC|zlib|ZSTD", re.I)


def is_damage(error: Exception) -> bool:
    """Whether one of DAMAGED is the decompressor's complaint; any other OSError is the storage's."""
    return not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile) or bool(_WORDS.search(str(error)))
