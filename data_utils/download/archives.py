"""Reads zip and tar archives from elsewhere: regular files only, and only under paths that stay where they are put."""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from data_utils.download.layout import safe_path
from data_utils.download.placing import not_writable
from data_utils.download.web import Failure
from mmrole.base.errors import shown

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_ENCRYPTED, _UTF8 = 0x1, 0x800
_COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_LARGEST_READ = 64 << 20


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    """As the archive has it."""
    path: PurePosixPath | None
    """Safe to put below any folder; None if it is not (see `layout.safe_path`), or the member is a link or a device."""
    content: IO[bytes] | None
    """To be read before the next member is asked for; None if `path` is."""
    size: int = 0
    """In bytes, as the archive tells it."""


def is_archive(path: PurePosixPath) -> bool:
    """Whether a file is an archive that can be read, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def members(path: Path, name: str) -> Iterator[Member]:
    """The members of an archive that are not folders, in order.

    Args:
        path: the archive.
        name: its name, which tells the format.

    Raises:
        Failure: it is damaged, encrypted or no archive; members before the damage have been given by then.
    """
    reader = _zip_members if name.lower().endswith(".zip") else _tar_members
    with _damage():
        yield from reader(path)


def extract(member: Member, target: Path) -> tuple[str, int]:
    """Writes a member's content into a file, and forces it to the disk: its SHA-256 and its size in bytes.

    Raises:
        Failure: the member is damaged, or has more bytes than the archive tells.
        UserError: the file cannot be written.
    """
    content, digest, size = member.content, hashlib.sha256(), 0
    if content is None:
        raise ValueError(f"{member.name} has no path that is safe")
    try:
        with open(target, "wb") as file:
            while chunk := _read(content):
                digest.update(chunk)
                size += len(chunk)
                if size > member.size:
                    raise Failure(f"the archive tells {member.size:,} bytes of {shown(member.name)}, which has more")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise not_writable(target, error) from error
    return digest.hexdigest(), size


def _read(content: IO[bytes]) -> bytes:
    with _damage():
        return content.read(1 << 20)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns what the readers raise into `Failure`: on damage, unknown compression, a password, a nonsensical header."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
        *(NotImplementedError, RuntimeError, ValueError),
    ) as error:
        text = (str(error).splitlines() or [""])[0].rstrip(": ") or type(error).__name__
        raise Failure(f"the archive is damaged or cannot be read ({text})") from None


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = _zip_name(info)
            kind = stat.S_IFMT(info.external_attr >> 16)
            place = safe_path(name) if kind in (0, stat.S_IFREG) else None
            if place is None:
                yield Member(name, None, None)
                continue
            if info.flag_bits & _ENCRYPTED:
                raise Failure("the archive is encrypted")
            with archive.open(info) as content:
                yield Member(name, place, content, info.file_size)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. Many programs write UTF-8, or a Chinese Windows' GBK, without saying so."""
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return info.filename
    raw = info.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gbk"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return info.filename


def _tar_members(path: Path) -> Iterator[Member]:
    with (
        _decompressed(path) as stream,
        # Whoever reads needs no `write` and no `close`, which typeshed asks for.
        tarfile.open(fileobj=_Guarded(stream), mode="r:") as archive,  # pyright: ignore[reportCallIssue, reportArgumentType]
    ):
        before = -1
        while (info := archive.next()) is not None:
            if info.size < 0 or info.offset <= before:  # of a negative size: it would come again for ever
                raise Failure("the archive is damaged or cannot be read (a negative size)")
            before = info.offset
            archive.members = []  # else it remembers all of them
            if info.isdir():
                continue
            place = safe_path(info.name) if info.isreg() else None
            content = None if place is None else archive.extractfile(info)
            yield Member(info.name, place, content, info.size)


class _Guarded:
    """A stream for tarfile, which reads a header of any size at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _decompressed(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), open)
    return opener(path, "rb")
