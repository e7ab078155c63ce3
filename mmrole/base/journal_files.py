"""Where the journals and the lock of an output lie, and how they are opened, read and removed."""

import contextlib
import os
import shutil
from pathlib import Path

from mmrole.base.disk import sync_folder
from mmrole.base.errors import UserError, reason
from mmrole.base.job_lock import JobLock


def folder_of(output: str | os.PathLike) -> Path:
    """The folder of an output's journals; an output that is a link has it beside its target."""
    real = Path(os.path.realpath(output))
    return real.with_name(real.name + ".journal")


def lock_file_of(folder: Path) -> Path:
    """The file of the lock on an output, beside its folder of journals."""
    return folder.with_name(f".{folder.stem}.lock")


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def journals_in(folder: Path) -> list[Path]:
    """The journals of all processes, of earlier runs too."""
    return sorted(folder.glob("*-of-*.jsonl"))


def open_file(path: Path, flags: int = 0) -> int:
    """Opens, or makes, a journal for appending.

    Raises:
        OSError, UserError: it cannot be written, or is no regular file.
    """
    if path.exists():
        _refuse_if_odd(path)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | flags, 0o666)


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
