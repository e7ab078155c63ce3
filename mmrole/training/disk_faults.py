"""Tells disk errors from bugs while a checkpoint or a result is saved: each library has its own words for them."""

from __future__ import annotations

import errno
from pathlib import Path

from safetensors import SafetensorError

from mmrole.base.errors import UserError, reason

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_DISK_WORDS = ("PytorchStreamWriter", "No space left", "Disk quota", "unexpected pos", "I/O error")


def is_of_the_disk(error: Exception, folder: Path) -> bool:
    """Whether a failed save into a folder is the disk's fault: full, read-only, broken.

    Also where another process has met the fault first, and has removed the folder.
    """
    if not folder.exists() and (isinstance(error, FileNotFoundError) or "does not exist" in str(error)):
        return True
    if isinstance(error, OSError):
        return error.errno in _DISK
    # torch and safetensors report what the system says as errors of their own.
    return isinstance(error, SafetensorError | UserError) or any(words in str(error) for words in _DISK_WORDS)


def disk_fault(error: Exception) -> str:
    """What the disk's fault is, in the system's words where they are known."""
    if isinstance(error, OSError):
        return reason(error)
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UserError) or "No space left" in text else f"the disk is full or broken ({text})"
