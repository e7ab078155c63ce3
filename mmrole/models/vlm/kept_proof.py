"""Whether prompt trees are exact with a model, as it was found out before: kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mmrole import prompt_tree
from mmrole.base.paths import cache_folder
from mmrole.models import vlm
from mmrole.models.checkpoints import processor_files
from mmrole.models.vlm.family import Vlm
from mmrole.models.vlm.proof import prove

# What was found out depends on these, and on the code of trees and of these models.
_PACKAGES = ("torch", "transformers")
_CODE = (prompt_tree, vlm)


def prove_once(family: Vlm, directory: Path) -> str | None:
    """As `prove`, which is asked once for all files of a model but its weights: these do not change how it attends.

    Processes that want to know at the same time wait for the one that finds it out.

    Raises:
        UserError: as `prove`.
    """
    folder = cache_folder()
    if folder is None:
        return prove(family, directory)
    with _opened(folder / "proofs" / _key(family, directory)) as descriptor:
        if descriptor is None:
            return prove(family, directory)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(os.read(descriptor, 1 << 16))["why_no_trees"]
        found = prove(family, directory)
        with contextlib.suppress(OSError):  # a full disk: it is found out again the next time
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"why_no_trees": found}).encode(), 0)
        return found


def _key(family: Vlm, directory: Path) -> str:
    """Names a configuration, the files of what encodes texts and images, and the code that was tried with them."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in processor_files(family.directory):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    digest.update(repr([version(name) for name in _PACKAGES]).encode())
    for package in _CODE:
        for file in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[int | None]:
    """A file that no other process has opened so; None where there cannot be one."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield None
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
