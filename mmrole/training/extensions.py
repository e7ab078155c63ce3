"""DeepSpeed's C++ extensions, built at first use: what is said before the build, which is silent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from mmrole.base.errors import UserError

ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
_ON_CPU = "deepspeed_shm_comm"  # of its communication between processes on the CPU


def locks() -> list[str]:
    """A line for each lock of an extension: DeepSpeed waits for it, even for that of a killed process."""
    return [
        f"{lock}: another process builds an extension, which is waited for; if none does (it was killed), delete this"
        for lock in sorted(_folder().glob("**/lock"))
    ]


def make_architectures_readable(environment: MutableMapping[str, str]) -> list[str]:
    """Takes the letters out of TORCH_CUDA_ARCH_LIST, as `9.0a` of Hopper has one: DeepSpeed's builder stops at them.

    Nothing else that runs in a training process is built by that list, and DeepSpeed has no kernels that need them.

    Args:
        environment: of this process.

    Returns:
        A line that says so, if there was one.
    """
    given = environment.get(ARCHITECTURES, "")
    readable = re.sub(r"(?<=\d)[a-z]+(?=\+PTX\b|[\s;]|$)", "", given)
    if readable == given:
        return []
    environment[ARCHITECTURES] = readable
    return [f"{ARCHITECTURES}={readable} for DeepSpeed's extensions: it cannot read {given}"]


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
