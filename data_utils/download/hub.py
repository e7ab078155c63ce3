"""The model hub, through huggingface_hub: its endpoint, token, headers, cache and client."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_utils.download.layout import safe_path
from data_utils.download.placing import SHA256_DIGITS, checksum, is_checksum
from data_utils.download.web import Failure, first_line, is_transient, retry_after
from mmrole.base.files import read_json


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
