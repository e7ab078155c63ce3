"""Checkpoints of a training run: which are complete, which is the newest, which are the run's own and may be deleted.

On disk after a crash: `checkpoint-N` folders, each with `complete.json` or half-written. `complete.json` is written
last, when every process has written its files and all of them have reached the disk; it names them with their sizes.
So its existence means that the folder was complete, and its content that it still is. `unfinished.json` is the first
file of a checkpoint, and the last that is deleted: it says whose the folder is meanwhile. A folder with neither, or
with those of another run, is somebody else's, and is never touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from mmrole.base.disk import set_usual_mode, sync_folder
from mmrole.base.errors import UserError, shown
from mmrole.base.files import partial_file, read_json, write_json
from mmrole.training.disk_faults import disk_fault, is_of_the_disk
from mmrole.training.run_fingerprint import RunFingerprint, difference

MANIFEST = "complete.json"
UNFINISHED = "unfinished.json"
_NAME = re.compile(r"checkpoint-([0-9]{1,15})")
_ELSEWHERE = "give another --output_dir, or move it away"
_FOREIGN = f"was not written by this run, or holds files that it has not written; {_ELSEWHERE}"


# What manifests of versions before 0.3 leave out where it is so.
_NOT_SAID: RunFingerprint = {"--dataloader_drop_last": False, "--max_pixels": None}


class Manifest(NamedTuple):
    """What `complete.json` or `unfinished.json` says.

    Attributes:
        run: what the folder belongs to.
        files: sizes by path in the folder; None of a folder that was not written to the end.
    """

    run: RunFingerprint
    files: dict[str, int] | None


def read_manifest(file: Path) -> Manifest | None:
    """A manifest, None if it cannot be read, or names what does not lie in its folder."""
    try:
        fields = read_json(file, dict)
    except UserError:
        return None
    run, files = fields.get("run"), fields.get("files")
    if not isinstance(run, dict) or not isinstance(files, dict | None):
        return None
    if not all(type(size) is int and _is_below(name) for name, size in (files or {}).items()):
        return None
    if "--fix_vit" in run:  # as versions before 0.3 say it
        run["--freeze"] = "vision" if run.pop("--fix_vit") else ""
    return Manifest(_NOT_SAID | run, files)


def claim(folder: Path, run: RunFingerprint) -> None:
    """Makes an empty checkpoint folder for a run, in the place of what an earlier start of it has left there.

    Raises:
        UserError: somebody else's files are there, or it cannot be written.
        OSError: it cannot be written.
    """
    check_claim(folder, run)
    if is_own(folder, run):
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / UNFINISHED, {"run": run})


def check_claim(folder: Path, run: RunFingerprint) -> None:
    """Raises UserError if a folder is there that is not this run's own."""
    if not is_own(folder, run) and not _is_free(folder):
        raise UserError(f"{folder} {_FOREIGN}")


def seal(folder: Path, run: RunFingerprint) -> None:
    """Declares a checkpoint complete; every process must have written its files.

    Args:
        folder: the checkpoint.
        run: what the checkpoint belongs to: `check_run` compares it when training goes on from it.

    Raises:
        UserError: the manifest cannot be written.
        OSError: a file cannot be forced to the disk.
    """
    files = _files(folder)
    for file in files:
        if file.suffix == ".safetensors":
            set_usual_mode(file)
        _force_to_disk(file)
    for subfolder in {file.parent for file in files}:
        sync_folder(subfolder)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    write_json(folder / MANIFEST, {"run": run, "files": sizes})
    (folder / UNFINISHED).unlink(missing_ok=True)


def fault(folder: Path) -> str | None:
    """Why a checkpoint is not complete; None if it is."""
    if not (folder / MANIFEST).is_file():
        return "it was not written to the end"
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None or manifest.files is None:
        return f"its {MANIFEST} cannot be read"
    for name, size in manifest.files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def is_own(folder: Path, run: RunFingerprint) -> bool:
    """Whether a folder is a checkpoint of this run, complete or not, that holds nothing of anybody else's."""
    if folder.is_symlink():
        return False
    for name in (MANIFEST, UNFINISHED):
        manifest = read_manifest(folder / name) if (folder / name).is_file() else None
        if manifest is not None:
            listed = manifest.files is None or all(str(f.relative_to(folder)) in manifest.files for f in _files(folder))
            return difference(manifest.run, run) is None and listed
    return False


def step_of(folder: Path) -> int:
    """The number of optimizer steps behind a checkpoint."""
    named = _NAME.fullmatch(folder.name)
    if named is None:
        raise UserError(f"{folder}: give a checkpoint-N folder to resume from, True or False")
    return int(named[1])


def find_all(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, complete or not."""
    return sorted((entry for entry in _named(output_dir) if entry.is_dir()), key=step_of, reverse=True)


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


def check_run(folder: Path, run: RunFingerprint) -> None:
    """Raises UserError if a complete checkpoint was made by a run with other data or settings."""
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        raise UserError(f"{folder / MANIFEST} cannot be read; give another --output_dir")
    was, name = manifest.run, difference(manifest.run, run)
    if name is not None:
        before = f"without {name}" if name in was else f"without noting its {name}"
        if was.get(name) is not None:
            before = f"with {name} {shown(was[name])}"
        now = "none" if run.get(name) is None else shown(run[name])
        raise UserError(
            f"{folder} was trained {before}, this command has {now}; "
            "give the same flags and data to go on, or another --output_dir"
        )


def check_free(output_dir: Path, run: RunFingerprint, done: int, total: int) -> None:
    """Refuses to write checkpoints over what is no leftover of this run.

    Args:
        output_dir: of the run.
        run: what it is made of.
        done: steps behind the checkpoint that it goes on from.
        total: steps of the run.

    Raises:
        UserError: a folder is there that a coming checkpoint may need.
    """
    for folder in _named(output_dir):
        if not done < step_of(folder) <= total or _is_free(folder):
            continue
        check_claim(folder, run)
        if fault(folder) is None:
            raise UserError(f"{folder} is complete, and going on from step {done:,} would write over it; {_ELSEWHERE}")


def remove_surplus(output_dir: Path, run: RunFingerprint, limit: int | None) -> None:
    """Keeps the newest `limit` complete checkpoints of a run, and removes its older ones, complete or not.

    Without a limit (None or 0) nothing is removed. The newest complete one always stays.
    """
    if not limit or limit < 0:
        return
    complete = 0
    for folder in find_all(output_dir):
        if is_own(folder, run):
            if complete >= limit:
                remove(folder)
            complete += fault(folder) is None


def remove(folder: Path) -> None:
    """Removes a checkpoint of the run's own; what a crash leaves of it is its own as well, and not complete."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / MANIFEST, folder / UNFINISHED)
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != UNFINISHED:
                entry.unlink()
        (folder / UNFINISHED).unlink(missing_ok=True)
        folder.rmdir()


def give_up(folder: Path, run: RunFingerprint, error: Exception) -> NoReturn:
    """Ends a run that cannot write a checkpoint: in a line, where it is the disk's fault."""
    if not is_of_the_disk(error, folder):
        raise error
    if is_own(folder, run):
        remove(folder)
    kept, _ = find_newest(folder.parent)
    rest = "there is no earlier one" if kept is None else f"{kept} is whole"
    raise UserError(
        f"cannot write {folder}: {disk_fault(error)}; {rest}: make room, or make it writable, and run the same command "
        "again"
    ) from error


def _named(output_dir: Path) -> list[Path]:
    return [entry for entry in output_dir.glob("checkpoint-*") if _NAME.fullmatch(entry.name)]


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or a folder without files, as a kill leaves it that came before `UNFINISHED`."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    return {entry.name for entry in folder.iterdir()} <= {partial_file(folder / UNFINISHED).name}


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, without its manifests."""
    files = (file for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    return sorted(file for file in files if file not in (folder / MANIFEST, folder / UNFINISHED))


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _force_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
