"""Whether Triton's kernels can be used: it comes with torch's builds for CUDA on Linux, not with others."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None
