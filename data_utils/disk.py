"""What durable files need of the system: locks that end with the process, and names that survive a crash."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


def open_locked(path: Path, flags: int) -> int | None:
    """Opens, or creates, a file for one process alone: its descriptor, or None if another process holds it.

    A POSIX record lock: it ends with the process, is not inherited by child processes, so an orphaned worker cannot
    keep it, and works on NFS. It is lost when this process closes any descriptor of the file. File systems without
    locks grant everything.

    Args:
        path: the file.
        flags: as for `os.open`, with write access.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        kept = False
        try:
            if not _try_lock(descriptor):
                return None
            with contextlib.suppress(FileNotFoundError):
                kept = os.path.samestat(os.fstat(descriptor), path.stat())
            if kept:  # else its owner has renamed or removed it between the opening and the lock
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)


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


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return True
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
