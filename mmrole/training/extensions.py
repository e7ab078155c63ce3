"""DeepSpeed's C++ extensions, built at first use: what is said before the build, which is silent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mmrole.base.errors import UserError

_ON_CPU = "deepspeed_shm_comm"  # of its communication between processes on the CPU


def locks() -> list[str]:
    """A line for each lock of an extension: DeepSpeed waits for it, even for that of a killed process."""
    return [
        f"{lock}: another process builds an extension, which is waited for; if none does (it was killed), delete this"
        for lock in sorted(_folder().glob("**/lock"))
    ]


def before_build_on_cpu() -> list[str]:
    """Lines to say before DeepSpeed starts on the CPU, which it does in silence.

    Raises:
        UserError: the extension is still to be built, and there is no compiler.
    """
    waiting = locks()
    if waiting or any(_folder().glob(f"**/{_ON_CPU}.so")):
        return waiting
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise UserError(f"DeepSpeed has to build an extension, and there is no compiler {compiler}; apt install g++")
    return ["DeepSpeed builds an extension, once, in about a minute"]


def _folder() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
