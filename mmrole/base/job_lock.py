"""The exclusive lock of an output: all processes of a job hold a part of it, from their start to their end."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Self

from mmrole.base.disk import lock_bytes, open_locked


class JobLock:
    """What a process holds of its job's lock; it ends with the process.

    The lock is on the bytes of an empty file: process r holds byte r, and the first one all bytes besides that belong
    to no process. A job begins by taking all bytes at once, so that it can begin only where no process of another job
    is left, however many processes either has.
    """

    def __init__(self, path: Path, descriptor: int, rank: int, world_size: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._rank = rank
        self._world_size = world_size

    @classmethod
    def take(cls, path: Path, rank: int, world_size: int) -> Self | None:
        """The lock, or None if another job holds it.

        Args:
            path: the file of the lock, in a folder that is there. It is made, and removed at the end.
            rank: this process, from 0. The first one begins before the others.
            world_size: the number of processes.

        Raises:
            OSError: the file cannot be written.
        """
        if rank:
            return cls._take_own(path, rank, world_size)
        descriptor = open_locked(path, os.O_RDWR)
        if descriptor is None:
            return None
        if world_size > 1:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(descriptor, fcntl.LOCK_UN, world_size - 1, 1)
        return cls(path, descriptor, rank, world_size)

    def renew(self) -> bool:
        """Takes the lock again if somebody has deleted its file; returns False if another job has it by now.

        Raises:
            OSError: the file cannot be written.
        """
        if self._is_there():
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._take_own(self._path, self._rank, self._world_size)
        if new is not None:
            os.close(self._descriptor)
            self._descriptor = new._descriptor
        return new is not None

    def release(self) -> None:
        """Ends the lock. The first process removes the file if no other one is left: whoever waits makes a new one."""
        try:
            if self._rank == 0 and self._is_there() and lock_bytes(self._descriptor):
                self._path.unlink()
        except OSError:  # a folder that must not be written any more; an empty file does no harm
            pass
        finally:
            os.close(self._descriptor)

    @classmethod
    def _take_own(cls, path: Path, rank: int, world_size: int) -> Self | None:
        """The part of one process."""
        descriptor = open_locked(path, os.O_RDWR, start=rank, length=1)
        if descriptor is None:
            return None
        if rank == 0 and not lock_bytes(descriptor, start=world_size):
            os.close(descriptor)
            return None
        return cls(path, descriptor, rank, world_size)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False
