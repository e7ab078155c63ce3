"""Unpacks an archive of the data set into the layout; first it is looked through."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from data_utils.download import archives
from data_utils.download.hub import HubFile
from data_utils.download.layout import TOP_FOLDERS, member_in_layout
from data_utils.download.outcome import Outcome
from data_utils.download.placing import put
from data_utils.download.record import DownloadRecord, FileState
from data_utils.download.room import describe_room
from data_utils.download.web import Failure
from mmrole.base.disk import sync_folder
from mmrole.base.errors import listed

_SHOWN = 10


class _Contents(NamedTuple):
    """What an archive holds."""

    places: dict[int, PurePosixPath]
    """In the layout, by the number of the member. Where several members have one place the last of them has it, as
    programs that unpack leave it."""
    sizes: Mapping[PurePosixPath, int]
    """In bytes, by place."""
    aside: list[str]
    """Members without a place."""


def unpack(archive: Path, file: HubFile, record: DownloadRecord, outcome: Outcome, overwrite: bool) -> None:
    """Puts the members of an archive into the layout: names those without a place there, and keeps what differs.

    Args:
        archive: the archive, which is removed when all is in place.
        file: of the hub.
        record: is told of the files.
        outcome: is told what was kept or left aside.
        overwrite: replace what differs.

    Raises:
        Failure: it is damaged, or nothing of it belongs into the layout.
        UserError: what it holds does not fit on the disk, or cannot be written.
    """
    contents = _look_through(archive, file.path)
    tqdm.write(describe_room(record.root, contents.sizes, file.path))
    part = archive.with_suffix(".member.part")
    try:
        for number, member in enumerate(archives.members(archive, file.path)):
            if place := contents.places.get(number):
                _put_member(member, place, part, file, record, outcome, overwrite)
    finally:
        part.unlink(missing_ok=True)
    for folder in {(record.root / place).parent for place in contents.sizes}:
        sync_folder(folder)
    if contents.aside:
        outcome.notes.append(f"left aside of {file.path}: {listed(contents.aside, _SHOWN)}")
    record.note_archive(file.path, file.oid, file.size)
    record.write(complete=False)  # before the archive goes: killed now, it need not be fetched again
    archive.unlink()


def _look_through(archive: Path, name: str) -> _Contents:
    """Reads what an archive holds, and unpacks nothing."""
    numbers, sizes, aside = {}, {}, []
    for number, member in enumerate(archives.members(archive, name)):
        place = member.path and member_in_layout(PurePosixPath(name), member.path)
        if place is None:
            aside.append(member.name)
        else:
            numbers[place], sizes[place] = number, member.size
    if not sizes:
        raise Failure(f"nothing in the archive belongs into {', '.join(TOP_FOLDERS)}, but {listed(aside, _SHOWN)}")
    if both := sizes.keys() & {parent for place in sizes for parent in place.parents}:
        raise Failure(f"in the archive these are files and folders at once: {listed(sorted(map(str, both)), _SHOWN)}")
    return _Contents({number: place for place, number in numbers.items()}, sizes, aside)


def _put_member(
    member: archives.Member,
    place: PurePosixPath,
    part: Path,
    file: HubFile,
    record: DownloadRecord,
    outcome: Outcome,
    overwrite: bool,
) -> None:
    oid, size = archives.extract(member, part)
    state = record.state(str(place), oid, size)
    if state is FileState.OTHER and not overwrite:
        outcome.kept.append(str(place))
        record.note_kept(str(place), file.path, oid, size)
        return
    if state is not FileState.SAME:
        put(part, record.root / place, sync=False)
    record.note(str(place), file.path, oid)
