"""Lists a repository's files as the hub tells them; what it answers is checked, value by value, before it is used."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any, TypeGuard
from urllib.parse import quote

from data_utils.download import hub
from data_utils.download.hub import HubFile, Repository, Snapshot
from data_utils.download.placing import SHA1_DIGITS, SHA256_DIGITS, is_checksum
from data_utils.download.web import LARGEST, SLOWEST, Failure, Patience
from mmrole.base.errors import UserError, shown

LARGEST_FILE = 1 << 62
"""Bytes. A number of hundreds of digits cannot even be counted with."""


def list_files(repository: Repository, patience: Patience) -> Snapshot:
    """Asks the hub for the files of a repository, with sizes and checksums.

    Raises:
        Failure: the hub cannot be reached, or does not give this repository and revision.
        UserError: what it gives is no listing, or lacks sizes or checksums.
    """
    info = _ask(repository, patience)
    commit, siblings = (info.get("sha"), info.get("siblings")) if isinstance(info, dict) else (None, None)
    if not is_checksum(commit) or not isinstance(siblings, list):
        raise _unusable(repository, "no commit with a list of files")
    files: dict[str, HubFile] = {}
    for sibling in siblings:
        file = _file(repository, sibling)
        if file.path in files:
            raise _unusable(repository, f"{shown(file.path)} twice")
        files[file.path] = file._replace(cached=hub.cached_copy(repository, commit, file.path))
    return Snapshot(repository, commit, list(files.values()))


def _ask(repository: Repository, patience: Patience) -> Any:
    """The hub's description of a repository, as it comes."""
    from huggingface_hub.utils import build_hf_headers, get_session

    url = f"{hub.endpoint()}/api/{repository.type}s/{repository.id}/revision/{quote(repository.revision, safe='')}"
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # what comes compressed could be of any size
    client, params = get_session(), {"blobs": "true"}
    try:
        with client.stream("GET", url, params=params, headers=headers, timeout=patience.timeout) as response:
            if response.is_error:
                raise hub.refusal(response.status_code, response.reason_phrase, response.headers)
            body = _joined(response.iter_raw(), repository, patience)
    except (Failure, UserError):
        raise
    except Exception as error:
        raise hub.failure(error) from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _unusable(repository, f"no JSON, but {shown(body[:20])}") from None


def _joined(chunks: Iterable[bytes], repository: Repository, patience: Patience) -> bytes:
    """The whole of an answer, which may be without an end."""
    deadline, body = time.monotonic() + SLOWEST * patience.timeout, bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > LARGEST:
            raise _unusable(repository, f"more than {LARGEST:,} bytes")
        if time.monotonic() > deadline:
            raise Failure(f"{len(body):,} bytes in {SLOWEST * patience.timeout:.0f} s, too slow", transient=True)
    return bytes(body)


def _file(repository: Repository, sibling: Any) -> HubFile:
    """A file of the listing, with a size and a checksum that are ones."""
    path = sibling.get("rfilename") if isinstance(sibling, dict) else None
    if not isinstance(path, str):
        raise _unusable(repository, f"a file without a name: {shown(sibling)}")
    large = sibling.get("lfs")
    oid, digits = (
        (large.get("sha256"), SHA256_DIGITS) if isinstance(large, dict) else (sibling.get("blobId"), SHA1_DIGITS)
    )
    size = sibling.get("size")
    if not _is_size(size) or not is_checksum(oid) or len(oid) != digits:
        name = path if path.isprintable() else shown(path)
        raise UserError(
            f"{hub.endpoint()} tells no size and checksum of {name}, so nothing could be verified; name another hub in "
            "HF_ENDPOINT"
        )
    return HubFile(path, size, oid)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_FILE


def _unusable(repository: Repository, what: str) -> UserError:
    return UserError(
        f"{hub.endpoint()} gives no usable listing of {repository.id}: {what}; name another hub in HF_ENDPOINT"
    )
