"""File locks that end with the process, and directories synchronised so that names survive a crash."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


def open_locked(path: Path, flags: int, start: int = 0, length: int = 0) -> int | None:
    """Opens, or creates, a file for one process alone: its descriptor, or None if another process holds it.

    A holder may remove or rename the file: whoever has opened it before then opens the new one.

    A POSIX record lock: it ends with the process, is not inherited by child processes, so an orphaned worker cannot
    keep it, and works on NFS. It is lost when this process closes any descriptor of the file. File systems without
    locks grant everything.

    Args:
        path: the file.
        flags: as for `os.open`, with write access.
        start: first of the bytes that are locked; they need not exist.
        length: their number; 0 for all behind `start`.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        kept = False
        try:
            if not lock_bytes(descriptor, start, length):
                return None
            with contextlib.suppress(FileNotFoundError):
                kept = os.path.samestat(os.fstat(descriptor), path.stat())
            if kept:  # else its owner has renamed or removed it between the opening and the lock
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)


def lock_bytes(descriptor: int, start: int = 0, length: int = 0) -> bool:
    """Locks bytes of a file for this process, unless another one holds some of them; returns whether it has them."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return True
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder (new, renamed and removed files) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_usual_mode(file: Path) -> None:
    """Gives a file the mode of new files; safetensors makes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
