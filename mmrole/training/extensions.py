"""DeepSpeed's C++ extensions, built at first use: what is said before the build, which is silent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch

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


def before_build_on_gpu(config: dict[str, Any]) -> list[str]:
    """Lines to say before DeepSpeed builds its optimizer for a GPU, which it does in silence behind the model.

    Args:
        config: DeepSpeed's.

    Raises:
        UserError: it is still to be built, and there is no CUDA toolkit.
    """
    name = _optimizer_extension(config)
    if name is None or any(_folder().glob(f"**/{name}.so")):
        return []
    from deepspeed.git_version_info import installed_ops  # those that pip has built
    from torch.utils.cpp_extension import CUDA_HOME

    if installed_ops.get(name):
        return []
    if CUDA_HOME is None and torch.version.cuda is not None:
        raise UserError(
            "DeepSpeed has to build its optimizer, and there is no CUDA toolkit (nvcc): install that of CUDA "
            f'{torch.version.cuda}, or set "torch_adam": true in optimizer.params of the configuration'
        )
    return locks() or ["DeepSpeed builds its optimizer, once, in about a minute"]


def _optimizer_extension(config: dict[str, Any]) -> str | None:
    """The extension that the configured optimizer is; None if it is torch's."""
    optimizer = config.get("optimizer", {})
    if str(optimizer.get("type")).lower() not in ("adam", "adamw") or optimizer.get("params", {}).get("torch_adam"):
        return None
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return "cpu_adam" if offload.get("device", "none") != "none" else "fused_adam"


def _folder() -> Path:
    from torch.utils.cpp_extension import get_default_build_root  # loads setuptools

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
