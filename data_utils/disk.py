"""What durable files need of the system: locks that end with the process, and names that survive a crash."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


def try_lock(descriptor: int) -> bool:
    """Locks an open, writable file against other processes; False if another process holds it.

    A POSIX record lock: it is not inherited by child processes, so an orphaned worker cannot keep it, and it works on
    NFS. It is lost when this process closes any descriptor of the file. File systems without locks grant everything.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
