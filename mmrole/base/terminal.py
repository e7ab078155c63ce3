"""Terminal input: lines of any bytes, and file names as terminals write them when a file is dragged there."""

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote

_URL = "file:"


def keep_any_bytes() -> None:
    """Makes stdin take bytes that its encoding does not have; `readable` and file names know what to do with them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def readable(line: str) -> str:
    """A line with the bytes that stdin could not decode as UTF-8, or replaced."""
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def find_file(text: str) -> Path:
    """The file that is meant by what a terminal writes when it is dragged there.

    As it stands, in quotes, with escaped blanks (`my\\ photo.jpg`), as `file://` and with `~`: the first of these that
    is there, or else the last, for an error message.
    """
    path = Path(text)
    for candidate in _readings(text):
        path = Path(candidate)
        with contextlib.suppress(RuntimeError):  # ~nobody
            path = path.expanduser()
        with contextlib.suppress(OSError, ValueError):  # too long, not allowed, a NUL: said where it is opened
            if path.exists():
                break
    return path


def _readings(text: str) -> list[str]:
    readings = [text]
    with contextlib.suppress(ValueError):  # a quotation that does not end is none
        words = shlex.split(text)
        readings += words if len(words) == 1 else []
    return readings + [_path_of_url(reading) for reading in readings if reading.startswith(_URL)]


def _path_of_url(url: str) -> str:
    """The path in `file:///path`, `file://host/path` or `file:/path`, which is on this machine, whatever the host."""
    path = url.removeprefix(_URL)
    if path.startswith("//"):
        path = "/" + path.removeprefix("//").partition("/")[2]
    return os.fsdecode(unquote(path, errors="surrogateescape"))
