"""Where the journals and the lock of an output lie, what they say of it, and how they are opened, read and removed."""

import contextlib
import enum
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mmrole.base.disk import sync_folder
from mmrole.base.errors import UserError, reason
from mmrole.base.job_lock import JobLock
from mmrole.base.journal_lines import Payloads, attempt_of, read_lines
from mmrole.base.json_values import Json


class JournalState(enum.Enum):
    """How far the job behind an output is."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def folder_of(output: str | os.PathLike) -> Path:
    """The folder of an output's journals; an output that is a link has it beside its target."""
    real = Path(os.path.realpath(output))
    return real.with_name(real.name + ".journal")


def state(output: str | os.PathLike) -> JournalState:
    """FINISHED if the output is there and has no journal, UNFINISHED if it has a journal, NEW otherwise."""
    if os.path.isdir(folder_of(output)):
        return JournalState.UNFINISHED
    return JournalState.FINISHED if os.path.lexists(output) else JournalState.NEW


def lock_file_of(folder: Path) -> Path:
    """The file of the lock on an output, beside its folder of journals."""
    return folder.with_name(f".{folder.stem}.lock")


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def journals_in(folder: Path) -> list[Path]:
    """The journals of all processes, of earlier runs too."""
    return sorted(folder.glob("*-of-*.jsonl"))


class AppendedFile:
    """A journal, open for appending: what a failure leaves of a line is cut off again."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        """Opens the file, or makes it; with `new` it must not be there.

        Raises:
            OSError, UserError: it cannot be written, or is no regular file.
        """
        if path.exists():
            _refuse_if_odd(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if new else 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._size = os.fstat(self._descriptor).st_size

    def read(self) -> bytes:
        """All that is in it."""
        return os.pread(self._descriptor, self._size, 0)

    def cut(self, size: int) -> None:
        """Drops what is behind its first bytes."""
        if size < self._size:
            os.ftruncate(self._descriptor, size)
            self._size = size

    def append(self, line: bytes) -> None:
        """Adds a line, or nothing where an OSError is raised."""
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException:
            # A part of the line may be written: the next one must not be glued to it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)

    def sync(self) -> None:
        """Forces it to the disk."""
        os.fsync(self._descriptor)

    @property
    def is_deleted(self) -> bool:
        """Whether it has no name any more."""
        return not os.fstat(self._descriptor).st_nlink

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._descriptor < 0

    def close(self) -> None:
        """Closes it, once."""
        os.close(self._descriptor)
        self._descriptor = -1


def read_file(path: Path) -> bytes:
    """What a journal holds.

    Raises:
        UserError: it cannot be read.
    """
    _refuse_if_odd(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; make it readable and try again") from error


def read_done(output: str | os.PathLike, fingerprint: dict[str, Json]) -> Mapping[str, Json]:
    """The finished records of an output's journals, payload by id, as they are now; nothing is written.

    Args:
        output: the file that the job makes.
        fingerprint: as for `Journal.open`.

    Raises:
        UserError: a journal has another fingerprint or is damaged.
    """
    records: dict[str, bytes] = {}
    for path in journals_in(folder_of(output)):
        lines, _ = read_lines(path, read_file(path), json.loads(json.dumps(fingerprint)))
        for id_, line in lines.items():
            if id_ not in records or attempt_of(line) > attempt_of(records[id_]):
                records[id_] = line
    return Payloads(records)


def remove_folder(folder: Path) -> None:
    """Removes the folder of journals by a rename, so that they are all there or all gone whenever a kill comes."""
    trash = _trash(folder)
    shutil.rmtree(trash, ignore_errors=True)
    if folder.is_dir():
        folder.rename(trash)
        sync_folder(folder.parent)
        shutil.rmtree(trash, ignore_errors=True)


def remove_leftovers(output: str | os.PathLike) -> None:
    """Removes what a kill in the very end of a job has left beside its finished output."""
    folder = folder_of(output)
    lock_file, trash = lock_file_of(folder), _trash(folder)
    if not lock_file.exists() and not trash.exists():
        return
    with contextlib.suppress(OSError):  # in a folder that must not be written they do no harm
        lock = JobLock.take(lock_file, 0, 1)
        if lock is not None:
            shutil.rmtree(trash, ignore_errors=True)
            lock.release()


def _refuse_if_odd(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; remove it and run the same command again")
