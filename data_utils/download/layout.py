"""Where the files of the data set belong: the published layout, whatever folders or archives the hub wraps it in."""

import unicodedata
from pathlib import PurePosixPath

TOP_FOLDERS = ("data", "dialogues", "images", "profiles", "RM_data")
"""The folders of the published layout, in the repository root."""

_SPLITS = ("train", "test")
_LONGEST_NAME, _LONGEST_PATH = 255, 1024


def safe_path(name: str) -> PurePosixPath | None:
    """A path from a listing or an archive, if it can only mean a file below the folder that it is put into.

    None for absolute paths, `..`, backslashes, drive letters, control characters, names that are too long, and hidden
    files and folders (`.gitattributes`, `.DS_Store`, `._01.jpg`; macOS adds them to archives).
    """
    if (
        name.startswith("/")
        or "\\" in name
        or len(name) > _LONGEST_PATH
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    ):
        return None
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "__MACOSX" or ":" in parts[0]:
        return None
    if any(part.startswith(".") or len(part.encode()) > _LONGEST_NAME for part in parts):
        return None
    return PurePosixPath(*parts)


def in_layout(path: PurePosixPath) -> PurePosixPath | None:
    """The place of a file in the layout: the path from the first of `TOP_FOLDERS` on, or None without one.

    `data` is only taken for the layout's when `train` or `test` follows: it is a common name for a wrapping folder.
    """
    for start, part in enumerate(path.parts[:-1]):
        rest = PurePosixPath(*path.parts[start:])
        if part in TOP_FOLDERS and (part != "data" or rest.parts[1] in _SPLITS):
            return rest
    return None


def member_in_layout(archive: PurePosixPath, member: PurePosixPath) -> PurePosixPath | None:
    """The place in the layout of an archive's member: by its own path, else as if it lay beside the archive.

    `images.zip` may hold `images/Friends/01.jpg`, `MMRole/images/Friends/01.jpg` or `Friends/01.jpg`.
    """
    stem = archive.name.split(".")[0]
    folder = archive.parent if member.parts[0] == stem else archive.parent / stem
    return in_layout(member) or in_layout(folder / member)
