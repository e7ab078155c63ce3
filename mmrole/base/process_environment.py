"""Validates the environment variables of torchrun's processes (RANK, WORLD_SIZE, …); a fault is one line."""

from __future__ import annotations

import os
import re

from mmrole.base.errors import UserError, shown

_REMEDY = "torchrun sets them: start the script with it, or unset them"
_NUMBERS = {
    "WORLD_SIZE": (1, 999_999),
    "RANK": (0, 999_998),
    "LOCAL_WORLD_SIZE": (1, 999_999),
    "LOCAL_RANK": (-1, 999_998),  # -1: not started by a launcher
    "MASTER_PORT": (0, 65535),
}


def check_process_environment() -> None:
    """Raises UserError if a variable holds no number of a process, or the numbers contradict each other."""
    numbers = {name: _number(name, *limits) for name, limits in _NUMBERS.items() if name in os.environ}
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        allowed = numbers.get(size, 999_999) - (rank != "LOCAL_WORLD_SIZE")
        if numbers.get(rank, 0) > allowed:
            raise UserError(f"{rank}={numbers[rank]} does not go with {size}={numbers[size]}; {_REMEDY}")


def _number(name: str, least: int, most: int) -> int:
    text = os.environ[name]
    if not re.fullmatch(r"-?[0-9]{1,6}", text) or not least <= int(text) <= most:
        raise UserError(f"{name}={shown(text)} in the environment is no number from {least} to {most}; {_REMEDY}")
    return int(text)
