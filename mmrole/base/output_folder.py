"""Files that belong together, written into a folder at once: a kill leaves none of them, or the same command goes on.

On disk, in the folder that is filled: `.mmrole-partial/files/` holds what is written so far. When all of it is there,
`.mmrole-partial/placing.json` is written, which names the command, and the files are renamed into the folder; then
`.mmrole-partial` goes. So after a crash

- without `placing.json` nothing in the folder has changed;
- with it, some files may be new and others old or missing. The same command then writes all of them again.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrole.base.disk import open_locked, sync_folder
from mmrole.base.errors import UserError, reason
from mmrole.base.files import read_json, write_json

PARTIAL = ".mmrole-partial"
"""Name of the subfolder in which files are written before they are placed."""


def refuse_existing(folder: str | os.PathLike, names: Iterable[str], command: Mapping[str, Any]) -> None:
    """Refuses to write over files, unless the command has `overwrite` or is an interrupted one again.

    Args:
        folder: what the command fills.
        names: of the files, relative to `folder`.
        command: the flags of the command by name.

    Raises:
        UserError: one of them is there.
    """
    try:
        _refuse_existing(folder, names, command)
    except UserError:
        remove_leftover(folder)
        raise


def remove_leftover(folder: str | os.PathLike) -> None:
    """Takes away what a kill has left beside whole files; not what another process is writing, or can complete."""
    partial = Path(os.path.realpath(folder)) / PARTIAL
    with contextlib.suppress(OSError):
        lock = open_locked(partial / "lock", os.O_RDWR) if partial.is_dir() else None
        if lock is not None:
            try:
                if not (partial / "placing.json").exists():
                    _remove(partial)
            finally:
                os.close(lock)


def is_new(folder: str | os.PathLike, command: Mapping[str, Any]) -> bool:
    """Whether a folder is not there, or empty, or holds only what an interrupted run of the same command has left."""
    if not os.path.lexists(folder) or _was_interrupted(folder, command):
        return True
    return os.path.isdir(folder) and os.listdir(folder) in ([], [PARTIAL])


@contextlib.contextmanager
def filling(
    folder: str | os.PathLike, command: Mapping[str, Any], *, last: str | None = None, stale: Iterable[str] = ()
) -> Iterator[Path]:
    """A folder to write files in, which are placed in `folder` when the block ends without an exception.

    After an exception `folder` is as it was. Files that are there and are not written again stay, but for `stale`;
    those that would be written over are refused, unless the command has `overwrite` or is an interrupted one again.

    Args:
        folder: what is filled; made as needed.
        command: the flags of the command by name, by which an interrupted one is known again. `overwrite` is not
            needed to go on, and does not count.
        last: name of the file that says that all are there: it is taken away first and placed last.
        stale: names, relative to `folder`, of files that an earlier run has made and this one does not.

    Raises:
        UserError: the folder cannot be written, a file is there already, or another process is filling the folder.
    """
    target = Path(os.path.realpath(folder))
    partial = target / PARTIAL
    made = not os.path.lexists(target)
    try:
        lock = _start(partial)
        if lock is None:
            raise UserError(f"{folder} is being written by another process; wait for it, or stop it")
        placed_in_part = (partial / "placing.json").exists()
        try:
            yield partial / "files"
            _refuse_existing(folder, _written(partial), command)
            write_json(partial / "placing.json", {"command": _as_json(command)})
            placed_in_part = True
            _place(partial, target, last, stale)
            placed_in_part = False
        finally:
            if not placed_in_part:  # else the same command must know what it has placed
                _remove(partial)
            os.close(lock)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {reason(error)}; make room, or make it writable, and run the same command again"
        ) from error
    finally:
        if made:
            with contextlib.suppress(OSError):  # unless it was filled
                target.rmdir()


def _refuse_existing(folder: str | os.PathLike, names: Iterable[str], command: Mapping[str, Any]) -> None:
    if command.get("overwrite") or _was_interrupted(folder, command):
        return
    for name in names:
        if os.path.lexists(place := Path(folder) / name):
            raise UserError(f"{place} exists already; give another --output_dir, or --overwrite")


def _start(partial: Path) -> int | None:
    """Empties what a kill has left half-written; the lock's descriptor, or None if another process holds it."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = open_locked(partial / "lock", os.O_RDWR)
    if lock is not None:
        shutil.rmtree(partial / "files", ignore_errors=True)
        (partial / "files").mkdir()
    return lock


def _was_interrupted(folder: str | os.PathLike, command: Mapping[str, Any]) -> bool:
    """Whether a run of the same command was stopped while it placed its files: what is there is its own."""
    try:
        return read_json(Path(folder) / PARTIAL / "placing.json", dict) == {"command": _as_json(command)}
    except UserError:
        return False


def _as_json(command: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({name: value for name, value in command.items() if name != "overwrite"}, default=str))


def _written(partial: Path) -> list[str]:
    files = partial / "files"
    return [str(file.relative_to(files)) for file in sorted(files.rglob("*")) if file.is_file()]


def _place(partial: Path, target: Path, last: str | None, stale: Iterable[str]) -> None:
    for name in stale if last is None else (last, *stale):
        (target / name).unlink(missing_ok=True)
    for name in sorted(_written(partial), key=lambda name: name == last):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / "files" / name, os.path.realpath(place))  # a link stays a link
        sync_folder(place.parent)


def _remove(partial: Path) -> None:
    """Takes the subfolder away; `placing.json`, after which nothing is left to be done, before the lock."""
    shutil.rmtree(partial / "files", ignore_errors=True)
    for name in ("placing.json", "lock"):
        (partial / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial.rmdir()
