"""The journal beside the output of a long job: every finished record survives a kill, and the job goes on from there.

On disk, for the output `x.json`: the folder `x.json.journal` with one file per process, `<rank>-of-<world_size>.jsonl`.
Its first line is the fingerprint of what makes the output (model, generation settings, input), every other line one
finished record:

    {"journal": 1, "fingerprint": {"program": "inference.py", "model": "…", "input": "<sha256>"}}
    {"id": "Iron_Man_comment_COCO_30_1", "payload": {"text": "…"}}

The life of a job, with the barriers that its processes owe each other (one process needs none):

    journal = Journal.open(output, fingerprint, rank, world_size, overwrite)  # rank 0, barrier, the others, barrier
    todo = [record for record in records if record.id not in journal.done][rank::world_size]
    journal.append(record.id, payload)                                        # as records finish; at the end a barrier
    finished = journal.collect()                                              # rank 0: the records of all processes
    write_json(output, …)                                                     # rank 0: atomic
    journal.remove()                                                          # rank 0; the others: journal.close()

What is on disk after a crash: a kill leaves every appended record, and at most a torn last line, which the next start
drops. A power cut can lose the records of the last seconds (`SYNC_SECONDS`), never older ones. The journal goes after
the output is complete and in one step (a rename), so an output without a journal is a finished one.
"""

import contextlib
import enum
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Self

from data_utils.disk import open_locked, sync_folder
from data_utils.errors import UserError, reason, shown

Json = Any

FORMAT = 1
"""Version of the journal's form, in its first line."""

SYNC_SECONDS = 5.0
"""Appended records are forced from the system's cache to the disk at least this often while records arrive."""


class State(enum.Enum):
    """How far the job behind an output is."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def state(output: str | os.PathLike) -> State:
    """FINISHED if the output is there and has no journal, UNFINISHED if it has a journal, NEW otherwise."""
    if _folder(output).is_dir():
        return State.UNFINISHED
    return State.FINISHED if os.path.lexists(output) else State.NEW


class Journal:
    """The journal file of one process, open for appending, and what all processes had finished when it was opened.

    Only the process that holds its lock appends to a file; the lock ends with the process. A journal may be used by one
    thread at a time.
    """

    done: dict[str, Json]
    """Finished records, payload by id: all that were there at the opening, and those that this process has appended."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.done = {}
        self._path = path
        self._descriptor = descriptor
        self._own: dict[str, Json] = {}
        self._size = 0
        self._fingerprint: dict[str, Json] = {}
        self._synced = time.monotonic()

    @classmethod
    def open(
        cls,
        output: str | os.PathLike,
        fingerprint: dict[str, Json],
        rank: int = 0,
        world_size: int = 1,
        overwrite: bool = False,
    ) -> Self:
        """Opens, and where needed starts, the journal of one process.

        Rank 0 goes first: it makes sure that nobody else works on the output and, with `overwrite`, removes what an
        earlier run has journaled (the old output stays until the new one replaces it).

        Args:
            output: the file that the job makes.
            fingerprint: JSON values by name: everything that changes a record. The names appear in messages.
            rank: this process, from 0.
            world_size: number of processes. It may differ from the earlier runs'.
            overwrite: start anew.

        Raises:
            UserError: the output is finished (without `overwrite`), another run is working on it, a journal has another
                fingerprint or is damaged, or the folder cannot be written.
        """
        folder = _folder(output)
        name = f"{rank}-of-{world_size}.jsonl"
        try:
            if rank == 0:
                _refuse_if_in_use(output, folder)
                if overwrite:
                    _remove(folder)
                elif state(output) is State.FINISHED:
                    raise UserError(f"{output} exists already; --overwrite starts anew")
            folder.mkdir(parents=True, exist_ok=True)
            journal = cls(folder / name, _open_locked(folder / name, output))
            try:
                journal._start(json.loads(json.dumps(fingerprint)))
            except BaseException:
                os.close(journal._descriptor)
                raise
        except OSError as error:
            raise UserError(f"cannot write {folder / name}: {reason(error)}; make it writable and try again") from error
        return journal

    def append(self, record_id: str, payload: Json) -> None:
        """Journals a finished record. When it returns, a kill cannot lose the record.

        Args:
            record_id: an id that is not in `done`.
            payload: JSON. `done` then holds what a later start would read (lists for tuples).

        Raises:
            UserError: the disk is full or the file cannot be written; the journal stays valid.
        """
        if record_id in self.done:
            raise ValueError(f"record {record_id!r} is in the journal already")
        line = _encode({"id": record_id, "payload": payload})
        self._write(line)
        self._own[record_id] = self.done[record_id] = json.loads(_text(line))["payload"]
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Forces what was appended to the disk, so that a power cut cannot lose it."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from error
        self._synced = time.monotonic()

    def collect(self) -> dict[str, Json]:
        """Everything that is finished, payload by id: of this process and, read anew, of all others.

        Raises:
            UserError: as `open`; or a record is journaled twice.
        """
        finished = dict(self._own)
        places = dict.fromkeys(self._own, self._path)
        for path in _journals(self._path.parent):
            # This process must not open its own file again: closing it would end the lock.
            if path == self._path:
                continue
            records, _ = _read(path, path.read_bytes(), self._fingerprint)
            for record_id, payload in records.items():
                if record_id in finished:
                    raise UserError(
                        f"record {shown(record_id)} is in {path} and in {places[record_id]}; "
                        "delete the line in one of them, or start anew with --overwrite"
                    )
                finished[record_id], places[record_id] = payload, path
        return finished

    def close(self) -> None:
        """Forces the journal to the disk and ends the lock. Closing again does nothing."""
        if self._descriptor < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Removes the journals of all processes and closes this one: the output is complete."""
        trash = _put_aside(self._path.parent)
        os.close(self._descriptor)
        self._descriptor = -1
        shutil.rmtree(trash, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, fingerprint: dict[str, Json]) -> None:
        """Reads what is there, drops a torn last line of the own file and writes its header if it has none."""
        self._fingerprint = fingerprint
        size = os.fstat(self._descriptor).st_size
        self._own, self._size = _read(self._path, os.pread(self._descriptor, size, 0), fingerprint)
        self.done = self.collect()
        if self._size < size:
            os.ftruncate(self._descriptor, self._size)
        if self._size == 0:
            self._write(_encode({"journal": FORMAT, "fingerprint": fingerprint}))
            sync_folder(self._path.parent)

    def _write(self, line: bytes) -> None:
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException as error:
            # A part of the line may be written: the next one must not be glued to it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        self._size += len(line)

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {reason(error)}; the {len(self.done)} finished records are kept: "
            "make room and run the same command again to go on"
        )


def _folder(output: str | os.PathLike) -> Path:
    real = Path(os.path.realpath(output))
    return real.with_name(real.name + ".journal")


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.jsonl"))


def _refuse_if_in_use(output: str | os.PathLike, folder: Path) -> None:
    for path in _journals(folder):
        os.close(_open_locked(path, output))


def _open_locked(path: Path, output: str | os.PathLike) -> int:
    """Opens a journal file for appending and locks it."""
    descriptor = open_locked(path, os.O_RDWR | os.O_APPEND)
    if descriptor is None:
        raise UserError(f"another process is working on {output}; wait for it, or stop it")
    return descriptor


def _read(path: Path, data: bytes, fingerprint: dict[str, Json]) -> tuple[dict[str, Json], int]:
    """The records of a journal file, payload by id, and the length in bytes of its whole lines.

    A file without records has nothing to lose and may have any header: it counts as empty.
    """
    size = data.rfind(b"\n") + 1
    lines = data[:size].split(b"\n")[:-1]
    if len(lines) < 2:
        return {}, 0
    _check_header(path, _decode(lines[0]), fingerprint)
    records = {}
    for number, line in enumerate(lines[1:], start=2):
        entry = _decode(line)
        if entry is None or entry.keys() != {"id", "payload"} or not isinstance(entry["id"], str):
            raise UserError(
                f"{path}: line {number} is damaged; delete the line (its record is made again), or start anew with "
                "--overwrite"
            )
        if entry["id"] in records:
            raise UserError(
                f"{path}: line {number} repeats the record {shown(entry['id'])}; delete one of the two lines, or start "
                "anew with --overwrite"
            )
        records[entry["id"]] = entry["payload"]
    return records, size


def _check_header(path: Path, header: dict[str, Json] | None, fingerprint: dict[str, Json]) -> None:
    made_with = None if header is None else header.get("fingerprint")
    if not isinstance(made_with, dict) or header.get("journal") != FORMAT:
        raise UserError(f"{path}: line 1 is not the header of a journal of this version; start anew with --overwrite")
    changes = differences(made_with, fingerprint)
    if changes:
        raise UserError(
            f"{path} was made with other settings: {', '.join(changes)}; go on with the same settings, or start anew "
            "with --overwrite"
        )


def differences(made_with: dict[str, Json], expected: dict[str, Json]) -> list[str]:
    """What differs between two fingerprints, in words."""
    return [
        f"{name} was {_noted(made_with, name)}, is {_noted(expected, name)}"
        for name in expected | made_with
        if made_with.get(name) != expected.get(name)
    ]


def _noted(fingerprint: dict[str, Json], name: str) -> str:
    return shown(fingerprint[name]) if name in fingerprint else "not noted"


def _encode(line: dict[str, Json]) -> bytes:
    # surrogatepass: lone surrogates come back exactly as they were, which UTF-8 or JSON escapes do not promise.
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogatepass")


def _decode(line: bytes) -> dict[str, Json] | None:
    try:
        value = json.loads(_text(line))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _put_aside(folder: Path) -> Path:
    """Renames the folder of journals, so that they are all there or all gone whenever the process is killed."""
    trash = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    sync_folder(folder.parent)
    return trash


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(_put_aside(folder), ignore_errors=True)
