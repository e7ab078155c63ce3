"""Fetches files of the model hub, over the connections, tokens and headers of huggingface_hub's client.

A file grows in place, and a killed download of a shard of two gigabytes goes on where it was. What a server sends is
taken piece by piece, so that neither an answer without an end nor a compressed one of any size fills memory or disk.
"""

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_utils.download import hub
from data_utils.download.hub import HubFile, Snapshot
from data_utils.download.placing import checksum, not_writable
from data_utils.download.web import Failure, first_line
from mmrole.base.errors import UserError

_PIECE = 1 << 20
_PAUSE = 1.0
"""Seconds before a connection that was lost is made again."""


def fetch(snapshot: Snapshot, file: HubFile, partial: Path, count: Callable[[int], None]) -> None:
    """Completes `partial`, which may hold the beginning of the file, and verifies its checksum.

    Args:
        snapshot: of the repository.
        file: one of its files.
        partial: is kept when the transfer is interrupted, and emptied when its checksum is wrong.
        count: is told of bytes as they come, and of the negative number of those that have to come again.

    Raises:
        Failure: no connection, an error of the hub, or content that is not what the hub says it is.
        UserError: the disk is full, or cannot be written.
    """
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "ab") as raw:
            content = Growing(raw, file.size, count)
            try:
                if content.size < file.size:
                    _complete(snapshot, file, content)
            except BaseException:
                count(-content.size)  # the next try counts what is there
                raise
            os.fsync(raw.fileno())
            if checksum(partial, len(file.oid)) == file.oid:
                return
            content.restart()
    except OSError as error:
        raise not_writable(partial, error) from error
    if file.cached is None:
        raise Failure("the content does not match its checksum", transient=True)
    fetch(snapshot, file._replace(cached=None), partial, count)


class Growing:
    """A file that is appended to, and tells how much; it never holds more than the hub lists."""

    def __init__(self, file: BinaryIO, size: int, count: Callable[[int], None]) -> None:
        self._file, self._most, self._count = file, size, count
        self.size = os.fstat(file.fileno()).st_size
        count(self.size)
        if self.size > size:
            self.restart()

    def write(self, data: bytes) -> int:
        """Appends, or raises `Failure` where there would be more than is listed; returns the number of bytes."""
        if self.size + len(data) > self._most:  # a body without an end would fill the disk
            self.restart()
            raise Failure(f"more than the {self._most:,} bytes that the hub lists", transient=True)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:  # to be told from the client's errors, some of which are OSErrors
            raise not_writable(Path(self._file.name), error) from error
        self.size += len(data)
        self._count(len(data))
        return len(data)

    def restart(self) -> None:
        """Empties the file."""
        self._file.truncate(0)
        self._count(-self.size)
        self.size = 0


def _complete(snapshot: Snapshot, file: HubFile, content: Growing) -> None:
    """Adds what is missing of a file, from the cache or the hub."""
    if file.cached is not None:
        content.restart()
        with (
            contextlib.suppress(OSError, Failure),
            open(file.cached, "rb") as copy,
        ):  # the checksum tells whether it worked
            shutil.copyfileobj(copy, content, _PIECE)
        return
    if snapshot.offline:
        raise Failure("not in the hub's cache, or damaged there, and HF_HUB_OFFLINE is set")
    while True:
        before = content.size
        try:
            _receive(snapshot, file, content)
            return
        except (UserError, Failure):
            raise
        except Exception as error:
            lost = hub.failure(error)
            if content.size <= before or not lost.transient:
                raise lost from error
        time.sleep(_PAUSE)  # a long file may lose its connection any number of times, as long as it grows


def _receive(snapshot: Snapshot, file: HubFile, content: Growing) -> None:
    """Asks for the rest of a file once, and appends what comes."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    repository = snapshot.repository
    url = hf_hub_url(
        repository.id, file.path, repo_type=repository.type, revision=snapshot.commit, endpoint=hub.endpoint()
    )
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # an offset into a compressed stream is none
    if content.size:
        headers["Range"] = f"bytes={content.size}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.is_error:
            raise hub.refusal(response.status_code, response.reason_phrase, response.headers)
        if response.status_code == 200:
            content.restart()
        elif response.status_code != 206 or not _goes_on(response, content.size):
            content.restart()
            raise Failure(first_line(f"HTTP {response.status_code} to a request for a file"), transient=True)
        for piece in _decoded(response):
            content.write(piece)
    if content.size < file.size:
        raise Failure(f"{content.size:,} of {file.size:,} bytes received", transient=True)


def _goes_on(response: Any, size: int) -> bool:
    """Whether a part of a file begins where it was to begin."""
    return response.headers.get("Content-Range", "").startswith(f"bytes {size}-")


def _decoded(response: Any) -> Iterable[bytes]:
    """The body as it comes, or unpacked where a server has packed it all the same: piece by piece, of any size."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return response.iter_raw()
    if encoding != "gzip" or response.status_code != 200:
        raise Failure(first_line(f"the server compresses what must not be compressed ({encoding})"))
    return _unpacked(response.iter_raw())


def _unpacked(body: Iterable[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        for packed in body:
            while packed:
                yield unpacker.decompress(packed, _PIECE)
                packed = unpacker.unconsumed_tail
        yield unpacker.flush(_PIECE)
    except zlib.error:
        raise Failure("the server's compression is damaged", transient=True) from None
