"""Finds and opens files in people's folders: what is hidden is passed over, and a link leads no further than it points.

Paths are looked at as they are: what the system refuses (closed folders, names that are too long) raises its OSError,
of which `mmrole.base.errors.run` makes one line.
"""

import contextlib
import os
import stat
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path

from mmrole.base.errors import UserError, reason


def files_in(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """The files of a folder whose name matches, sorted, without hidden ones; none if there is no such folder.

    Names that begin with a dot are hidden: macOS leaves a `._NAME` beside each file on disks of other systems.
    """
    return _matching(Path(folder), _visible(folder), pattern)


def files_below(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """The files of a folder and of all folders in it, linked ones as well, as `files_in` takes them; each once."""
    found: list[Path] = []
    starts, entered = [Path(folder)], set()
    for start in starts:  # linked folders are added on the way, to be entered when all others have been
        for place, folders, names in os.walk(start, onerror=_raise_unless_missing):
            real = os.path.realpath(place)
            folders[:] = [] if real in entered else sorted(name for name in folders if not _is_hidden(name))
            if real not in entered:
                entered.add(real)
                links = [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
                starts += [link for link in links if not _holds(link, folder)]
                found += _matching(Path(place), names, pattern)
    return sorted(found)


def resolve_below(folder: str | os.PathLike, path: str) -> Path | None:
    """The file of a path in other people's text, with all links followed; None if it leads out of the folder.

    A folder that is linked into it belongs to it, as far as the link's own target reaches: a link that lies in there
    may not lead out of that again. A linked folder that holds the folder itself is none of these.

    Args:
        folder: may itself be a link.
        path: relative to it.
    """
    root = os.path.realpath(folder)
    file = Path(os.path.realpath(os.path.join(root, path)))
    return file if file.is_relative_to(root) or file.is_relative_to(_first_linked(root, path)) else None


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Opens a file to read. A pipe or a device, which may never end, is refused.

    Raises:
        UserError: it cannot be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe waits for its writer
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise UserError(f"cannot read {path}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is no regular file'}")


def _visible(folder: str | os.PathLike) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _matching(folder: Path, names: list[str], pattern: str) -> list[Path]:
    return sorted(folder / name for name in names if not _is_hidden(name) and fnmatchcase(name, pattern))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _holds(folder: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether a folder is another one, or one above it."""
    return Path(os.path.realpath(other)).is_relative_to(os.path.realpath(folder))


def _first_linked(root: str, path: str) -> str:
    """The target of the first folder on the path that is linked from elsewhere; the root itself if there is none."""
    place = root
    for part in Path(path).parts:
        place = os.path.join(place, part)
        target = os.path.realpath(place)
        if not Path(target).is_relative_to(root):
            return target if os.path.isdir(target) and not _holds(target, root) else root
        place = target
    return root


def cache_folder() -> Path | None:
    """Where what is expensive to find out is kept for this user; None without a home. It need not exist."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrole"
    return None
