"""Downloads a repository of the hub: lists it, compares it with the disk, fetches, moves and unpacks."""

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import NamedTuple

from data_utils.download import archives, hub, listing, transfer
from data_utils.download.hub import HubFile, Repository, Snapshot
from data_utils.download.layout import TOP_FOLDERS, in_layout, safe_path
from data_utils.download.outcome import FetchProgress, Outcome, fetch_all, kept_text, size_text
from data_utils.download.placing import alone, put
from data_utils.download.record import DownloadRecord, FileState
from data_utils.download.room import check_room
from data_utils.download.unpacking import unpack
from data_utils.download.web import Failure, Pace, Patience, retrying
from mmrole.base.errors import UserError, listed

RECORD = "download.json"
STAGING = ".download"

_SHOWN = 10


class WantedFile(NamedTuple):
    """A file of the hub, and what is on disk of it."""

    file: HubFile
    target: str | None
    """Its place below the root; None for an archive of the data set, which is unpacked."""
    state: FileState
    others: list[str]
    """What is kept in its place, if the state is OTHER: one file, or some that the archive has other versions of."""


class FetchPlan(NamedTuple):
    """What is to be done for a repository."""

    snapshot: Snapshot
    folder: Path
    """Of the record."""
    record: DownloadRecord
    replaced: str
    """The commit of the download before, if it was another one."""
    steps: list[WantedFile]
    code: list[str]
    """Files of code. They are not fetched: checkpoints load without running code from them."""
    aside: list[str]
    """Other files that have no place here: hidden ones, and those of a data set outside of its layout."""

    def wanted(self, overwrite: bool) -> list[WantedFile]:
        """What has to be fetched."""
        states = {FileState.MISSING, FileState.OURS} | ({FileState.OTHER} if overwrite else set())
        return [step for step in self.steps if step.state in states]

    def kept(self, overwrite: bool) -> list[str]:
        """Files on disk that are not as published, and are not replaced."""
        return (
            [] if overwrite else [name for step in self.steps if step.state is FileState.OTHER for name in step.others]
        )


def make_plan(repository: Repository, data_root: Path, patience: Patience, verify: bool = False) -> FetchPlan:
    """Lists a repository and compares it with what is on disk.

    Args:
        repository: of the hub.
        data_root: the root of the published layout.
        patience: for the listing.
        verify: compute the checksums even of files that look untouched since they were downloaded.

    Raises:
        UserError: the hub cannot be reached or does not have it, or nothing of it fits the layout.
    """
    folder = data_root / repository.folder
    in_folders = repository.type == "dataset"
    record = DownloadRecord(folder / RECORD, data_root if in_folders else folder)
    snapshot = _list_offline(repository, record) if hub.is_offline() else _list(repository, patience)
    places = _places(snapshot, in_folders)
    before, steps, code, aside = record.about["commit"], [], [], []
    for file in snapshot.files:
        path = safe_path(file.path)
        if path is not None and path.suffix == ".py":
            code.append(file.path)
        elif path is not None and in_folders and archives.is_archive(path):
            steps.append(_archive_step(file, record, verify))
        elif file.path in places:
            steps.append(_file_step(file, places[file.path], record, verify))
        else:
            aside.append(file.path)
    if not steps:
        found = listed(aside + code, _SHOWN) or "no files"
        raise UserError(f"{repository.id} at commit {snapshot.commit} has nothing that fits the layout, but {found}")
    named = {"repository": repository.id, "revision": repository.revision, "endpoint": hub.endpoint()}
    record.about = {**named, "commit": snapshot.commit}
    replaced = before if before != snapshot.commit else ""
    return FetchPlan(snapshot, folder, record, replaced, steps, code, aside)


def describe_plan(target: str, plan: FetchPlan, overwrite: bool) -> str:
    """What would be fetched, and how large it is."""
    wanted = sorted(plan.wanted(overwrite), key=lambda step: -step.file.size)
    lines = [
        headline(target, plan),
        f"  {len(plan.steps):,} files, {_size(plan.steps)}; to fetch: {len(wanted):,} files, {_size(wanted)}, into "
        + (", ".join(TOP_FOLDERS) if plan.snapshot.repository.type == "dataset" else str(plan.folder)),
        *(f"    {size_text(step.file.size):>9}  {step.file.path}" for step in wanted[:_SHOWN]),
    ]
    if rest := wanted[_SHOWN:]:
        lines.append(f"    {_size(rest):>9}  in {len(rest):,} more")
    if kept := plan.kept(overwrite):
        lines.append(f"  {kept_text(kept)}")
    return "\n".join(lines)


def headline(target: str, plan: FetchPlan) -> str:
    """Which repository and commit it is, and what of it is left aside."""
    snapshot = plan.snapshot
    source = "from the hub's cache" if snapshot.offline else f"from {hub.endpoint()}"
    lines = [
        f"{target}: {snapshot.repository.id} at {snapshot.repository.revision}, commit {snapshot.commit}, {source}"
    ]
    if plan.replaced:
        lines.append(f"  instead of commit {plan.replaced}, which is there")
    if plan.code:
        lines.append(f"  code, which is never run here, is not fetched: {listed(plan.code, _SHOWN)}")
    if plan.aside:
        lines.append(f"  left aside: {listed(plan.aside, _SHOWN)}")
    return "\n".join(lines)


def carry_out(plan: FetchPlan, outcome: Outcome, patience: Patience, workers: int, overwrite: bool = False) -> None:
    """Fetches what a plan wants, and puts it into its place. The record is written whatever happens.

    Raises:
        UserError: the disk is full or cannot be written, or another process is fetching the same.
    """
    snapshot, record, staging = plan.snapshot, plan.record, plan.folder / STAGING
    wanted = {step.file.path: step for step in plan.wanted(overwrite)}
    outcome.present = sum(step.state is FileState.SAME for step in plan.steps)
    outcome.kept += plan.kept(overwrite)
    total = sum(step.file.size for step in wanted.values())
    check_room(plan.folder, sum(_room(step, staging / _part(step.file)) for step in wanted.values()))
    pace, placing = Pace(), threading.Lock()

    def fetch(name: str) -> int:
        file, target = wanted[name].file, wanted[name].target
        part = staging / _part(file)
        retrying(lambda: transfer.fetch(snapshot, file, part, progress.add_bytes), patience, pace)
        with placing:  # one archive at a time: each finds the room that the one before has left
            if target is None:
                unpack(part, file, record, outcome, overwrite)
            else:
                _put_file(part, file, target, record, overwrite)
        return file.size

    if not wanted:
        _finish(plan, outcome.complete)
        return
    with alone(staging):
        try:
            with FetchProgress(outcome.target, len(wanted), total) as progress:
                fetch_all(wanted, fetch, outcome, progress, pace, workers)
        except BaseException:
            with contextlib.suppress(UserError):  # a disk that is full must not hide why the download ends
                record.write(complete=False)
            raise
        _finish(plan, outcome.complete and outcome.fetched == len(wanted))
        if outcome.complete:  # what is left over belongs to other commits
            for part in staging.glob("*.part"):
                part.unlink()
    with contextlib.suppress(OSError):  # not empty
        staging.rmdir()


def _put_file(part: Path, file: HubFile, target: str, record: DownloadRecord, overwrite: bool) -> None:
    """Puts a file into its place, unless something else has come there since the plan was made."""
    if record.state(target, file.oid, file.size) is FileState.OTHER and not overwrite:
        raise Failure("something else has come into its place; --overwrite replaces it")
    put(part, record.root / target)
    record.note(target, file.path, file.oid)


def _finish(plan: FetchPlan, complete: bool) -> None:
    if complete:
        plan.record.forget_others({step.file.path for step in plan.steps})
    plan.record.write(complete)


def _list(repository: Repository, patience: Patience) -> Snapshot:
    def list_once() -> Snapshot:
        try:
            return listing.list_files(repository, patience)
        except Failure as failure:
            if failure.status is None:  # no network: said at once, without retries
                raise UserError(
                    f"cannot list {repository.id} at {hub.endpoint()}: {failure}; check the network, or name another "
                    "hub in HF_ENDPOINT"
                ) from None
            raise

    try:
        return retrying(list_once, patience, Pace())
    except Failure as failure:
        raise UserError(f"cannot list {repository.id} at revision {repository.revision}: {failure}") from None


def _list_offline(repository: Repository, record: DownloadRecord) -> Snapshot:
    if record.complete and repository.revision in (record.about["revision"], record.about["commit"]):
        return _recorded(repository, record)
    snapshot = hub.list_cached(repository)
    if snapshot is None:
        raise UserError(
            f"{repository.id} at revision {repository.revision} is not in the hub's cache, and HF_HUB_OFFLINE is set; "
            "unset it, or name the cache in HF_HOME"
        )
    return snapshot


def _recorded(repository: Repository, record: DownloadRecord) -> Snapshot:
    """The files that an earlier download has fetched completely."""
    commit = record.about["commit"]
    whole = [(known.source, known) for known in record.files.values() if known.source not in record.archives]
    files = [
        HubFile(path, known.size, known.oid, hub.cached_copy(repository, commit, path))
        for path, known in [*whole, *record.archives.items()]
    ]
    return Snapshot(repository, commit, files, offline=True)


def _places(snapshot: Snapshot, in_folders: bool) -> dict[str, str]:
    """Where files of the hub belong below the root, by their path there. Of several for one place the least wrapped."""
    sources: dict[str, str] = {}
    for file in sorted(snapshot.files, key=lambda file: file.path.count("/")):
        path = safe_path(file.path)
        target = path and (in_layout(path) if in_folders else path)
        if target is not None and str(target).casefold() != RECORD:  # the record of a model lies among its files
            sources.setdefault(str(target), file.path)
    return {path: target for target, path in sources.items()}


def _file_step(file: HubFile, target: str, record: DownloadRecord, verify: bool) -> WantedFile:
    state = record.state(target, file.oid, file.size, verify)
    if state is FileState.SAME:
        record.note(target, file.path, file.oid)
    return WantedFile(file, target, state, [target])


def _archive_step(file: HubFile, record: DownloadRecord, verify: bool) -> WantedFile:
    """An archive has to be fetched (MISSING or OURS) for any file that came from it."""
    known = record.archives.get(file.path)
    if known is None or known.oid != file.oid:
        return WantedFile(file, None, FileState.MISSING, [])
    members = record.members(file.path)
    states = {name: record.state(name, member.oid, member.size, verify) for name, member in members.items()}
    order = (FileState.MISSING, FileState.OURS, FileState.OTHER)
    state = next((state for state in order if state in states.values()), FileState.SAME)
    return WantedFile(file, None, state, [name for name in states if states[name] is FileState.OTHER])


def _part(file: HubFile) -> str:
    """The name of a file while it grows. Another version of the file has another name."""
    return f"{hashlib.sha256(file.path.encode()).hexdigest()[:16]}-{file.oid[:16]}.part"


def _size(steps: list[WantedFile]) -> str:
    return size_text(sum(step.file.size for step in steps))


def _room(step: WantedFile, part: Path) -> int:
    """The bytes that a file still takes on the disk; an archive lies beside what comes out of it for a while."""
    there = part.stat().st_size if part.exists() else 0
    return step.file.size * (1 if step.target else 2) - there
