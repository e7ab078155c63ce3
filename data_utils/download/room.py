"""Checks of free disk space, before anything is written."""

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from data_utils.download.outcome import size_text
from mmrole.base.errors import UserError, reason

AnyPath = TypeVar("AnyPath", bound=PurePath)

_BLOCK = 4096


def check_room(folder: Path, size: int) -> None:
    """Raises UserError if so many bytes do not fit where `folder` is, or will be."""
    existing, free = _free(folder)
    if size > free:
        raise UserError(f"{size_text(size)} needed, but only {size_text(free)} are free in {existing}; make room")


def describe_room(root: Path, sizes: Mapping[AnyPath, int], what: str) -> str:
    """What `what` holds and how much is free for it, for people.

    Args:
        root: the folder that the files are to be put into.
        sizes: in bytes, by path below the root. What is there already counts as room; links are followed.
        what: is named in messages.

    Raises:
        UserError: they do not fit.
    """
    total, growth = size_text(sum(sizes.values())), _growth_by_disk(root, sizes)
    says = f"{what} holds {len(sizes):,} files, {total}"
    for existing, size in growth.items():
        free = _free(existing)[1]
        if size > free:
            raise UserError(
                f"{says}; unpacked it takes {size_text(size)} in {existing}, where only {size_text(free)} are free; "
                "make room"
            )
    rooms = (f"{size_text(_free(existing)[1])} are free in {existing}" for existing in growth)
    return f"{says}; {', '.join(rooms)}"


def _growth_by_disk(root: Path, sizes: Mapping[AnyPath, int]) -> dict[Path, int]:
    """The bytes to be added on each disk, by the first folder that is found on it."""
    folders = {folder: _existing(root / folder) for folder in {path.parent for path in sizes}}
    devices = {existing: existing.stat().st_dev for existing in set(folders.values())}
    growth, largest, named = defaultdict(int), defaultdict(int), {}
    for path, size in sizes.items():
        existing = folders[path.parent]
        disk = named.setdefault(devices[existing], existing)
        there = (root / path).stat().st_size if (root / path).is_file() else 0
        growth[disk] += max(0, _blocks(size) - there)
        largest[disk] = max(largest[disk], size)  # each file is written beside the one that it replaces
    return {disk: max(size, largest[disk]) for disk, size in growth.items()}


def _blocks(size: int) -> int:
    """The bytes that a file takes of a disk; an empty one takes some as well."""
    return max(1, -(-size // _BLOCK)) * _BLOCK


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if os.path.isdir(parent))


def _free(folder: Path) -> tuple[Path, int]:
    """The folder, or the first one above it that exists, and the free bytes there."""
    existing = _existing(folder)
    try:
        return existing, shutil.disk_usage(existing).free
    except OSError as error:
        raise UserError(f"cannot use {folder}: {reason(error)}") from None
