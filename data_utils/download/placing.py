"""Atomic placement of downloads: one process at a time, each file whole, its checksum known."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from mmrole.base.disk import open_locked, sync_folder
from mmrole.base.errors import UserError, reason
from mmrole.base.files import replacing

SHA256_DIGITS, SHA1_DIGITS = 64, 40

_DIGITS = (SHA256_DIGITS, SHA1_DIGITS)
_LOCK = ".download.lock"


def is_checksum(text: object) -> TypeGuard[str]:
    """Whether this is a SHA-256 or SHA-1 as the hub writes it. What a server gives becomes a file name only then."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]+", text) is not None and len(text) in _DIGITS


def checksum(path: Path, digits: int) -> str:
    """The checksum of a file as the hub gives it, in hexadecimal: SHA-256, or (40 digits) the SHA-1 of a git blob."""
    with open(path, "rb") as file:
        if digits == SHA256_DIGITS:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def put(source: Path, target: Path, sync: bool = True) -> None:
    """Moves a file, which has been forced to the disk, to its place, atomically; also to another file system.

    Args:
        source: the file.
        target: its place; folders are made as needed.
        sync: force its new name to the disk; else the caller does (`disk.sync_folder`).

    Raises:
        UserError: the place cannot be written.
    """
    target = Path(os.path.realpath(target))  # a link stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        if sync:
            sync_folder(target.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise not_writable(target, error) from error
        with replacing(target) as file, open(source, "rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)
        source.unlink()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds `folder` (made as needed) against other downloads.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    lock = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(lock, os.O_RDWR)
    except OSError as error:
        raise not_writable(folder, error) from error
    if descriptor is None:
        raise UserError(f"another download is writing into {folder}; wait for it, or stop it")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # must not hide why the download ends
            lock.unlink()
        os.close(descriptor)


def not_writable(path: Path, error: OSError) -> UserError:
    """The error of a file or folder that cannot be written."""
    return UserError(
        f"cannot write {path}: {reason(error)}; make room, or make it writable, and run the same command again"
    )
