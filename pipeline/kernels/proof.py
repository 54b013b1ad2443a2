"""Whether numba compiles here and what it compiles computes what it should: a line of `corpusmill check`."""

from __future__ import annotations

from cluster.errors import RunError

_VECTOR = (0xE6A825BA047F81A3, 0x930255C71472F66D)
"""SipHash-2-4-128 of nothing under the key 00 01 … 0f: the first of the authors' test vectors, as two words."""


def proof() -> str:
    """What to tell of kernels that work. Raises RunError when they do not, or cannot be stored."""
    try:
        import numba
        import numpy as np

        from pipeline.kernels.hashing import siphash128
        from pipeline.progress import kernels_compiled

        stored = kernels_compiled()
        keys = np.frombuffer(bytes(range(16)), "<u8")
        found = tuple(int(word) for word in siphash128(np.empty(0, np.uint8), 0, 0, keys[0], keys[1]))
    except RuntimeError as error:  # numba's "cannot cache function …: no locator available"
        raise RunError(f"{error}; set NUMBA_CACHE_DIR to a folder that is writable") from error
    if found != _VECTOR:
        raise RunError(f"SipHash of nothing is {found}, expected {_VECTOR}: numba {numba.__version__} miscompiles here")
    return f"numba {numba.__version__} compiles; " + (
        "kernels are stored" if stored else "the first run compiles them all: a minute or two, once"
    )
