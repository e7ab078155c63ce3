"""Whether Triton's kernels can be used: it comes with torch's builds for CUDA on Linux, not with others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path


@cache
def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


@cache
def can_compile() -> bool:
    """Whether kernels can be compiled for a GPU, ours and torch's: by Triton, which builds what launches them in C."""
    return has_triton() and missing_for_launchers() is None


def missing_for_launchers() -> str | None:
    """What Triton lacks here to build its launchers; None if nothing."""
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang"])):
        return f"there is no C compiler {compiler or 'gcc'}"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton has it: Debian's own
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").is_file():
        return "Python's headers are not installed (Python.h)"
    return None
