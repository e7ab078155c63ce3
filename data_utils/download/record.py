"""Manifest of a download, `download.json`: what it put on disk, and whether it is still there."""

import threading
from collections.abc import Collection
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from data_utils.download.layout import safe_path
from data_utils.download.placing import checksum, is_checksum
from mmrole.base.errors import UserError, reason
from mmrole.base.files import read_json, write_json


class FileState(Enum):
    """A file on disk, compared with the one that is wanted."""

    MISSING = auto()
    SAME = auto()
    OURS = auto()
    """Another version, as an earlier download put it there: may be replaced."""
    OTHER = auto()
    """Something else, which is somebody's: must not be replaced without being asked."""


class Known(NamedTuple):
    """A file as a download left it."""

    source: str
    """The hub's file that it is, or the archive that it came from."""
    oid: str
    """See `placing.checksum`."""
    size: int
    mtime_ns: int


class Archive(NamedTuple):
    """An archive of the hub that has been unpacked."""

    oid: str
    size: int


class DownloadRecord:
    """The record of one repository's download. Threads share it.

    Args:
        path: of the record, which need not exist.
        root: the folder that its file names are relative to.

    Raises:
        UserError: the record cannot be read.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.about = {"repository": "", "revision": "", "endpoint": "", "commit": ""}
        self.complete = False
        self.files: dict[str, Known] = {}
        self.archives: dict[str, Archive] = {}
        self._lock = threading.Lock()
        if path.exists():
            self._read()

    def state(self, name: str, oid: str, size: int, verify: bool = False) -> FileState:
        """Compares a file on disk with the wanted one. A file of the record that looks untouched is not read again.

        Args:
            name: of the file, relative to the root.
            oid: the wanted checksum.
            size: the wanted size in bytes.
            verify: read the file in any case.

        Raises:
            UserError: the file is there and cannot be read.
        """
        path = self.root / name
        try:
            found = path.stat()
            known = self.files.get(name)
            untouched = known is not None and (known.size, known.mtime_ns) == (found.st_size, found.st_mtime_ns)
            if untouched and known is not None and known.oid == oid and not verify:
                return FileState.SAME
            if path.is_file() and found.st_size == size and checksum(path, len(oid)) == oid:
                return FileState.SAME
            return FileState.OURS if untouched else FileState.OTHER
        except (FileNotFoundError, NotADirectoryError):
            return FileState.MISSING
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None

    def note(self, name: str, source: str, oid: str) -> None:
        """Remembers that a file of the root is as the download left it."""
        path = self.root / name
        try:
            found = path.stat()
        except OSError as error:  # it has just been put there
            raise UserError(f"cannot read {path}: {reason(error)}; run the same command again") from None
        with self._lock:
            self.files[name] = Known(source, oid, found.st_size, found.st_mtime_ns)

    def note_kept(self, name: str, source: str, oid: str, size: int) -> None:
        """Remembers what should be in the place of a file that was kept: it will be compared again."""
        with self._lock:
            self.files[name] = Known(source, oid, size, mtime_ns=-1)

    def note_archive(self, name: str, oid: str, size: int) -> None:
        """Remembers that an archive has been unpacked."""
        with self._lock:
            self.archives[name] = Archive(oid, size)

    def forget_others(self, sources: Collection[str]) -> None:
        """Forgets what came from files of the hub that are not in `sources`, since the commit does not have them."""
        with self._lock:
            self.files = {name: known for name, known in self.files.items() if known.source in sources}
            self.archives = {name: archive for name, archive in self.archives.items() if name in sources}

    def members(self, archive: str) -> dict[str, Known]:
        """The files that came from an archive."""
        return {name: known for name, known in self.files.items() if known.source == archive}

    def write(self, complete: bool) -> None:
        """Writes the record, atomically. `complete`: all files of the commit are there."""
        with self._lock:
            archives = {name: archive._asdict() for name, archive in sorted(self.archives.items())}
            files = {name: known._asdict() for name, known in sorted(self.files.items())}
            write_json(self.path, {**self.about, "complete": complete, "archives": archives, "files": files})

    def _read(self) -> None:
        content = read_json(self.path, dict)
        try:
            self.about = {key: str(content[key]) for key in self.about}
            self.complete = content["complete"] is True
            self.files = {name: Known(**known) for name, known in content["files"].items()}
            self.archives = {name: Archive(**archive) for name, archive in content["archives"].items()}
            sound = all(map(_is_sound, [*self.files, *self.archives], [*self.files.values(), *self.archives.values()]))
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise UserError(f"{self.path} is not the record of a download; remove it and run this again") from None


def _is_sound(name: str, known: Known | Archive) -> bool:
    """Whether an entry is one that a download writes: its checksum becomes part of a file name."""
    numbers = (known.size, known.mtime_ns) if isinstance(known, Known) else (known.size,)
    sources = (name, known.source) if isinstance(known, Known) else (name,)
    return (
        is_checksum(known.oid)
        and all(type(number) is int for number in numbers)
        and all(isinstance(source, str) and safe_path(source) is not None for source in sources)
    )
