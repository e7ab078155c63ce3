"""Checkpoints of a training run: which are complete, which is the newest, what may be deleted.

On disk after a crash: `checkpoint-N` folders, each with `complete.json` or half-written. `complete.json` is written
last, when every process has written its files and all of them have reached the disk; it names them with their sizes.
So its existence means that the folder was complete, and its content that it still is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data_utils.disk import set_usual_mode, sync_folder
from data_utils.errors import UserError, reason, shown
from data_utils.files import read_json, write_json

MANIFEST = "complete.json"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_DISK_WORDS = ("PytorchStreamWriter", "No space left", "Disk quota", "unexpected pos", "I/O error")
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, run: dict[str, Any]) -> None:
    """Declares a checkpoint complete; every process must have written its files.

    Args:
        folder: the checkpoint.
        run: what the checkpoint belongs to: `check_run` compares it when training goes on from it.

    Raises:
        UserError: the manifest cannot be written.
        OSError: a file cannot be forced to the disk.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    for file in files:
        if file.suffix == ".safetensors":
            set_usual_mode(file)
        _force_to_disk(file)
    for subfolder in {file.parent for file in files}:
        sync_folder(subfolder)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    write_json(folder / MANIFEST, {"run": run, "files": sizes})


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not complete; None if it is."""
    if not (folder / MANIFEST).is_file():
        return "it was not written to the end"
    try:
        files = read_json(folder / MANIFEST, dict)["files"]
    except (UserError, KeyError):
        return f"its {MANIFEST} cannot be read"
    for name, size in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def step_of(folder: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    named = _NAME.fullmatch(folder.name)
    if named is None:
        raise UserError(f"{folder}: give a checkpoint-N folder to resume from, True or False")
    return int(named[1])


def find_all(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, complete or not."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if folder.is_dir() and _NAME.fullmatch(folder.name)]
    return sorted(folders, key=step_of, reverse=True)


def find_newest(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a line about each newer one that is not."""
    notes = []
    for folder in find_all(output_dir):
        reason = fault(folder)
        if reason is None:
            return folder, notes
        notes.append(f"{folder} is not complete ({reason}) and not used")
    return None, notes


def choose(output_dir: Path, resume: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint that `--resume_from_checkpoint` means, None to start from the model; and lines to print.

    Args:
        output_dir: of the run.
        resume: a path; None or "True" for the newest complete checkpoint, if there is one; "False" for none.

    Raises:
        UserError: the path is no complete checkpoint, or there are checkpoints that "False" would write over.
    """
    if resume is None or resume.lower() == "true":
        return find_newest(output_dir)
    if resume.lower() == "false":
        existing = find_all(output_dir)
        if existing:
            raise UserError(f"{existing[0]} is there; give another --output_dir, or leave --resume_from_checkpoint out")
        return None, []
    folder = Path(resume)
    step_of(folder)
    if not folder.is_dir():
        raise UserError(f"--resume_from_checkpoint {folder}: no such directory; True takes the newest complete one")
    reason = fault(folder)
    if reason is not None:
        raise UserError(f"{folder} is not complete ({reason}); True takes the newest complete one of --output_dir")
    return folder, []


def check_run(folder: Path, run: dict[str, Any]) -> None:
    """Raises UserError if a complete checkpoint was made by a run with other data or settings."""
    was = read_json(folder / MANIFEST, dict)["run"]
    for name in sorted(was.keys() | run.keys()):
        if was.get(name) != run.get(name):
            noted = f"with {name} {shown(was[name])}" if name in was else f"without noting its {name}"
            raise UserError(
                f"{folder} was trained {noted}, this command has {shown(run.get(name))}; "
                "give the same flags and data to go on, or another --output_dir"
            )


def remove_surplus(output_dir: Path, limit: int | None) -> None:
    """Keeps the newest `limit` complete checkpoints, and removes older ones, complete or not.

    Without a limit (None or 0) nothing is removed. The newest complete one always stays.
    """
    if not limit or limit < 0:
        return
    complete = 0
    for folder in find_all(output_dir):
        if complete >= limit:
            remove(folder)
        complete += fault(folder) is None


def remove(folder: Path) -> None:
    """Removes a checkpoint; what a crash leaves of it is not complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def is_of_the_disk(error: Exception, folder: Path) -> bool:
    """Whether a failed save into a folder is the disk's fault: full, read-only, broken.

    Also where another process has met the fault first, and has removed the folder.
    """
    if not folder.exists() and (isinstance(error, FileNotFoundError) or "does not exist" in str(error)):
        return True
    if isinstance(error, OSError):
        return error.errno in _DISK
    # torch and safetensors report what the system says as errors of their own.
    return isinstance(error, SafetensorError | UserError) or any(words in str(error) for words in _DISK_WORDS)


def disk_fault(error: Exception) -> str:
    """What the disk's fault is, in the system's words where they are known."""
    if isinstance(error, OSError):
        return reason(error)
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UserError) or "No space left" in text else f"the disk is full or broken ({text})"


def _force_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
