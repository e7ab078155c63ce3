"""The journal beside the output of a long job: every finished record survives a kill, and the job goes on from there.

On disk, for the output `x.json`: the folder `x.json.journal` with one file per process, `<rank>-of-<world_size>.jsonl`.
Its first line is the fingerprint of what makes the output (model, generation settings, input), every other line one
finished record:

    {"journal": 1, "fingerprint": {"program": "inference.py", "model": "…", "input": "<sha256>"}}
    {"id": "Iron_Man_comment_COCO_30_1", "payload": {"text": "…"}}

A record that was made again has an "attempt" besides, from 1, and the line of the last attempt counts.

The life of a job, with the barriers that its processes owe each other (one process needs none):

    journal = Journal.open(output, fingerprint, rank, world_size, overwrite)  # rank 0, barrier, the others, barrier
    todo = [record for record in records if record.id not in journal.done][rank::world_size]
    journal.append(record.id, payload)                                        # as records finish
    journal.close()                                                           # all but rank 0; then a barrier
    finished = journal.collect()                                              # rank 0: the records of all processes
    journal.confirm_lock()
    write_json(output, …)                                                     # rank 0: atomic
    journal.remove()                                                          # rank 0

One job at a time works on an output: its processes hold the lock `.x.json.lock` beside it from the opening to the
closing (`JobLock`).

What is on disk after a crash: a kill leaves every appended record, and at most a torn last line, which the next start
drops. A power cut can lose the records of the last seconds (`SYNC_SECONDS`), never older ones. The journal goes after
the output is complete and in one step (a rename), so an output without a journal is a finished one.
"""

import contextlib
import json
import os
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from mmrole.base.disk import sync_folder
from mmrole.base.errors import UserError, reason, shown
from mmrole.base.job_lock import JobLock
from mmrole.base.journal_files import (
    AppendedFile,
    JournalState,
    folder_of,
    journals_in,
    lock_file_of,
    read_file,
    remove_folder,
    state,
)
from mmrole.base.journal_lines import FORMAT, Payloads, attempt_of, encode_line, read_lines
from mmrole.base.json_values import Json

SYNC_SECONDS = 5.0
"""Appended records are forced from the system's cache to the disk at least this often while records arrive."""


class Journal:
    """The journal file of one process, open for appending, and what all processes had finished when it was opened.

    A journal may be used by one thread at a time.
    """

    done: Mapping[str, Json]
    """Finished records, payload by id: all that were there at the opening, and those that this process has appended."""

    def __init__(self, output: str | os.PathLike, path: Path, lock: JobLock, is_alone: bool) -> None:
        self._own: dict[str, bytes] = {}
        self._others: dict[str, bytes] = {}
        self._lines = ChainMap(self._own, self._others)
        self.done = Payloads(self._lines)
        self._output = output
        self._path = path
        self._lock = lock
        self._is_alone = is_alone
        self._file = AppendedFile(path)
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

        Rank 0 goes first: with `overwrite` it removes what an earlier run has journaled (the old output stays until
        the new one replaces it).

        Args:
            output: the file that the job makes.
            fingerprint: JSON values by name: everything that changes a record. The names appear in messages.
            rank: this process, from 0.
            world_size: number of processes. It may differ from the earlier runs'.
            overwrite: start anew.

        Raises:
            UserError: the output is finished (without `overwrite`), another job is working on it, a journal has another
                fingerprint or is damaged, or the folder cannot be written.
        """
        folder = folder_of(output)
        path = folder / f"{rank}-of-{world_size}.jsonl"
        with contextlib.ExitStack() as opened:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock = JobLock.take(lock_file_of(folder), rank, world_size)
                if lock is None:
                    raise _in_use(output)
                opened.callback(lock.release)
                if rank == 0:
                    if overwrite:
                        remove_folder(folder)
                    elif state(output) is JournalState.FINISHED:
                        raise UserError(f"{output} is finished already; without --overwrite it is left as it is")
                folder.mkdir(exist_ok=True)
                journal = cls(output, path, lock, world_size == 1)
                opened.callback(journal._file.close)
                journal._start(json.loads(json.dumps(fingerprint)))
            except OSError as error:
                raise UserError(f"cannot write {path}: {reason(error)}; make it writable and try again") from error
            opened.pop_all()
        return journal

    def append(self, record_id: str, payload: Json, replace: bool = False) -> None:
        """Journals a finished record. When it returns, a kill cannot lose the record.

        Args:
            record_id: an id that is not in `done`.
            payload: JSON. `done` then holds what a later start would read (lists for tuples).
            replace: the id may be in `done`: what is there counts no more.

        Raises:
            UserError: the disk is full or the file cannot be written; the journal stays valid. Or it was deleted; what
                is finished is journaled again.
        """
        entry: dict[str, Json] = {"id": record_id, "payload": payload}
        if record_id in self.done:
            if not replace:
                raise ValueError(f"record {record_id!r} is in the journal already")
            entry["attempt"] = attempt_of(self._lines[record_id]) + 1
        line = encode_line(entry)
        self._write(line)
        self._own[record_id] = line[:-1]
        self._refuse_if_deleted()
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Forces what was appended to the disk, so that a power cut cannot lose it.

        Raises:
            UserError: that fails, or another job works on the output, since the file of the lock was deleted.
        """
        self.confirm_lock()
        try:
            self._file.sync()
        except OSError as error:
            raise self._failure(error) from error
        self._synced = time.monotonic()

    def confirm_lock(self) -> None:
        """Makes sure that no other job works on the output, even if somebody has deleted the file of the lock.

        Raises:
            UserError: another job does.
        """
        try:
            held = self._lock.renew()
        except OSError as error:
            raise self._failure(error) from error
        if not held:
            raise _in_use(self._output)

    def collect(self) -> Mapping[str, Json]:
        """Everything that is finished, payload by id: of this process and, read anew, of all others.

        Raises:
            UserError: as `open`; or a record is journaled twice.
        """
        return Payloads(ChainMap(self._own, self._read_others()))

    def close(self) -> None:
        """Forces the journal to the disk and ends the lock. Closing again does nothing.

        Raises:
            UserError: the journal was deleted (what is finished is written again), or cannot be written.
        """
        if self._file.is_closed:
            return
        try:
            self._refuse_if_deleted()
            self.sync()
        finally:
            self._end()

    def remove(self) -> None:
        """Removes the journals of all processes and closes this one: the output is complete.

        Raises:
            UserError: they cannot be removed.
        """
        try:
            remove_folder(self._path.parent)
        except OSError as error:
            raise UserError(
                f"{self._output} is complete, but {self._path.parent} cannot be removed: {reason(error)}; make its "
                "folder writable and run the same command again"
            ) from error
        finally:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, fingerprint: dict[str, Json]) -> None:
        """Reads what is there, drops a torn last line of the own file and writes its header if it has none."""
        self._fingerprint = fingerprint
        own, size = read_lines(self._path, self._file.read(), fingerprint)
        self._own |= own
        self._others |= self._read_others()
        self._file.cut(size)
        if size == 0:
            self._write_header()

    def _read_others(self) -> dict[str, bytes]:
        """The records in the other files, line by id."""
        records: dict[str, bytes] = {}
        places: dict[str, Path] = {}
        for path in journals_in(self._path.parent):
            if path == self._path:
                continue
            lines, _ = read_lines(path, read_file(path), self._fingerprint)
            for record_id, line in lines.items():
                earlier = self._own.get(record_id) or records.get(record_id)
                if earlier is not None and attempt_of(earlier) > attempt_of(line):
                    continue
                if earlier is not None and attempt_of(earlier) == attempt_of(line):
                    raise UserError(
                        f"record {shown(record_id)} is in {path} and in {places.get(record_id, self._path)}; "
                        "delete the line in one of them, or start anew with --overwrite"
                    )
                self._own.pop(record_id, None)
                records[record_id], places[record_id] = line, path
        return records

    def _write_header(self) -> None:
        self._write(encode_line({"journal": FORMAT, "fingerprint": self._fingerprint}))
        sync_folder(self._path.parent)

    def _write(self, line: bytes) -> None:
        try:
            self._file.append(line)
        except OSError as error:
            raise self._failure(error) from error

    def _refuse_if_deleted(self) -> None:
        if not self._file.is_deleted:
            return
        records = self._lines if self._is_alone else self._own
        self.confirm_lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = AppendedFile(self._path, new=True)
        except OSError as error:
            raise UserError(
                f"{self._path} was deleted while the job ran, and cannot be written again: {reason(error)}; its "
                f"{len(records)} finished records are lost"
            ) from error
        self._file.close()
        self._file = new
        self._write_header()
        for line in records.values():
            self._write(line + b"\n")
        raise UserError(
            f"{self._path} was deleted while the job ran; its {len(records)} finished records are written there again: "
            "run the same command again to go on"
        )

    def _end(self) -> None:
        self._file.close()
        self._lock.release()

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {reason(error)}; the {len(self.done)} finished records are kept: "
            "make room and run the same command again to go on"
        )


def _in_use(output: str | os.PathLike) -> UserError:
    return UserError(f"another process is working on {output}; wait for it, or stop it")
