"""Fetches files of the model hub, through huggingface_hub: its endpoint, token, headers, cache and client.

The client of huggingface_hub keeps no part of a file that was interrupted. Here a file grows in place, and a killed
download of a shard of two gigabytes goes on where it was: the client's own transfer function is given the offset.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_utils.download.layout import safe_path
from data_utils.download.placing import SHA256_DIGITS, checksum, is_checksum, not_writable
from data_utils.download.web import Failure, first_line, is_transient, retry_after
from data_utils.errors import UserError
from data_utils.files import read_json


class Repository(NamedTuple):
    """A repository of the hub."""

    id: str
    type: str
    """`dataset` or `model`."""
    folder: str
    """Where its files and the record lie below the root; a data set's files are spread over the layout instead."""
    revision: str = "main"
    """Branch, tag or commit."""


# The commits are not pinned here: --revision pins one, and the record of a download names the one that it got.
REPOSITORIES = {
    "data": Repository("YanqiDai/MMRole_dataset", "dataset", "data"),
    "agent": Repository("YanqiDai/MMRole-Agent", "model", "model_weights/MMRole-Agent"),
    "rm": Repository("YanqiDai/MMRole-Eval_RM", "model", "model_weights/MMRole-Eval_RM"),
    "base": Repository("Qwen/Qwen-VL-Chat", "model", "model_weights/Qwen-VL-Chat"),
}


class HubFile(NamedTuple):
    """A file of a repository."""

    path: str
    size: int
    oid: str
    """SHA-256 of a large file, SHA-1 of the git blob of a small one."""
    cached: Path | None = None
    """A copy in the hub's cache on this machine."""


class Snapshot(NamedTuple):
    """The files of a repository at one commit."""

    repository: Repository
    commit: str
    files: list[HubFile]
    offline: bool = False
    """Only the cache can be asked (`HF_HUB_OFFLINE`)."""


def silence_client() -> None:
    """Turns off the client's own progress bars and its warnings of every retry: what fails in the end is reported."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()


def endpoint() -> str:
    """The address of the hub: `HF_ENDPOINT`, or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def cached_copy(repository: Repository, commit: str, path: str) -> Path | None:
    """A file of a repository in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if safe_path(path) is None:  # which the client refuses
        return None
    found = try_to_load_from_cache(repository.id, path, revision=commit, repo_type=repository.type)
    return Path(found) if isinstance(found, str) else None


def list_cached(repository: Repository) -> Snapshot | None:
    """The files of a repository in the hub's cache, without asking the hub; None if it is not there completely."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository.id, repo_type=repository.type, revision=repository.revision, local_files_only=True
        )
    except LocalEntryNotFoundError:  # an incomplete snapshot's error is one of these
        return None
    files = []
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            blob = path.resolve()  # the cache names blobs by checksum; a file system without links has none
            oid = blob.name if is_checksum(blob.name) else checksum(path, SHA256_DIGITS)
            files.append(HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, oid, path))
    if repository.type == "model" and not _has_weights(Path(folder)):
        return None
    return Snapshot(repository, Path(folder).name, files, offline=True)


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
            content = _Growing(raw, file.size, count)
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


class _Growing:
    """A file that is appended to, and tells how much: what the client's transfer function needs of a file."""

    def __init__(self, file: BinaryIO, size: int, count: Callable[[int], None]) -> None:
        self._file, self._most, self._count = file, size, count
        self.size = os.fstat(file.fileno()).st_size
        count(self.size)
        if self.size > size:
            self.restart()

    def write(self, data: bytes) -> int:
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

    def tell(self) -> int:
        return self.size

    def seek(self, offset: int) -> int:
        """Nothing to do: writing appends. The client rewinds to 0, and truncates, where a server ignores the offset."""
        return offset

    def truncate(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Empties the file."""
        self._file.truncate(0)
        self._count(-self.size)
        self.size = 0


def _complete(snapshot: Snapshot, file: HubFile, content: _Growing) -> None:
    """Adds what is missing of a file, from the cache or the hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if file.cached is not None:
        content.restart()
        with (
            contextlib.suppress(OSError, Failure),
            open(file.cached, "rb") as copy,
        ):  # the checksum tells whether it worked
            shutil.copyfileobj(copy, content, 1 << 20)
        return
    if snapshot.offline:
        raise Failure("not in the hub's cache, or damaged there, and HF_HUB_OFFLINE is set")
    repository = snapshot.repository
    try:
        http_get(
            hf_hub_url(repository.id, file.path, repo_type=repository.type, revision=snapshot.commit),
            content,
            resume_size=content.size,
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},  # an offset into a compressed stream is none
            expected_size=file.size,
        )
    except (UserError, Failure):
        raise
    except Exception as error:
        raise failure(error) from error


def failure(error: Exception) -> Failure:
    """What an error of the client means. Its network errors come from httpx or httpx2, depending on its version."""
    response = getattr(error, "response", None)
    if response is None:
        return Failure(f"no usable answer: {first_line(str(error)) or type(error).__name__}", transient=True)
    return refusal(response.status_code, response.reason_phrase, response.headers)


def refusal(status: int, phrase: str, headers: Mapping[str, str]) -> Failure:
    """What an HTTP status of the hub above 400 means; it tells more in a header."""
    code = headers.get("X-Error-Code")
    if code == "GatedRepo":
        text = "access is restricted: accept its terms on the hub, and set HF_TOKEN"
    elif code == "RevisionNotFound":
        text = "no such revision"
    elif code == "RepoNotFound" or (status == 401 and "Invalid credentials" not in headers.get("X-Error-Message", "")):
        text = f"no such repository at {endpoint()}, or it is not public (HF_TOKEN gives access)"
    else:
        text = first_line(f"HTTP {status} {phrase}")
    return Failure(text, is_transient(status), retry_after(headers), status)


def _has_weights(folder: Path) -> bool:
    """Whether weights are there, and all that an index names: programs often cache only a model's settings."""
    weights = {path.name for suffix in ("bin", "safetensors") for path in folder.glob(f"[!.]*.{suffix}")}
    maps = [read_json(path, dict).get("weight_map", {}) for path in folder.glob("[!.]*.index.json")]
    return bool(weights) and all(isinstance(named, dict) and weights >= set(map(str, named.values())) for named in maps)
