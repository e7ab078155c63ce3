"""Whether Triton's kernels can be used: it comes with torch's builds for CUDA on Linux, not with others."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache


@cache
def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


@cache
def can_compile() -> bool:
    """Whether torch can compile for a GPU: by Triton, which builds its launchers with a C compiler."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return has_triton() and any(shutil.which(name) for name in compilers if name)
