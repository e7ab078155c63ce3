"""Hashes of whole files. That of a large one is computed once, and kept in the user's cache folder.

What is kept is found again by the file's place on the disk, its size and its times to the nanosecond, the time of its
last change among them, which nobody can set back.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmrole.base.errors import UserError, reason
from mmrole.base.paths import cache_folder

# Up to this size a file is simply read again.
_LARGE = 64 << 20
_WORTH_A_LINE = 4 << 30
_CHUNK = 16 << 20
_THREADS = 4
# A file may change twice within one tick of the file system's clock: its times tell only after a while.
_SETTLED_SECONDS = 2.0


def hash_files(files: Sequence[Path]) -> str:
    """One hash of the names and contents of files: every byte of them counts.

    Raises:
        UserError: a file cannot be read, or changes meanwhile.
    """
    unknown = sum(size for size in map(_unknown_bytes, files))
    if unknown > _WORTH_A_LINE:
        print(f"hashing {unknown / 1e9:.1f} GB of weights, once", file=sys.stderr, flush=True)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(_digest, files):
            digest.update(part)
    return digest.hexdigest()[:16]


def _digest(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        digest = hashlib.sha256(json.dumps([file.name, size]).encode())
        digest.update(file.read_bytes() if size <= _LARGE else bytes.fromhex(_large(file, _stamp(file))))
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}; make it readable") from None
    return digest.digest()


@functools.cache
def _large(file: Path, stamp: str) -> str:
    """SHA-256 of a file's content, which was there with this stamp."""
    kept = _kept(stamp)
    if kept is not None:
        with contextlib.suppress(OSError, ValueError):
            known = kept.read_text(encoding="ascii")
            if len(bytes.fromhex(known)) == hashlib.sha256().digest_size:
                return known
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    if _stamp(file) != stamp:
        raise UserError(f"{file} changes while it is read; wait until it is complete, and run the same command again")
    if kept is not None and time.time() - max(file.stat().st_mtime, file.stat().st_ctime) > _SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # without a cache folder it is computed again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_name(f"{kept.name}.{os.getpid()}")
            partial.write_text(digest.hexdigest(), encoding="ascii")
            partial.replace(kept)
    return digest.hexdigest()


def _unknown_bytes(file: Path) -> int:
    """How many bytes must be read for a file's hash, if they are many."""
    with contextlib.suppress(OSError):
        size, kept = file.stat().st_size, _kept(_stamp(file))
        return size if size > _LARGE and not (kept is not None and kept.is_file()) else 0
    return 0


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _kept(stamp: str) -> Path | None:
    """Where the hash of a file with this stamp is kept; None without a home."""
    folder = cache_folder()
    return None if folder is None else folder / "hashes" / stamp
