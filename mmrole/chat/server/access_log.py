"""One line for each request, without what it says."""

from __future__ import annotations

import sys
import time

from mmrole.base.errors import in_one_line

_LONGEST_PATH = 80
_GONE = 499


class AccessLine:
    """What becomes of a request.

    Attributes:
        status: of its response.
    """

    def __init__(self, client: str, method: str, path: str) -> None:
        self._head = f"{client} {method} {path[:_LONGEST_PATH]}"
        self._start = time.monotonic()
        self._first: float | None = None
        self._notes: list[str] = []
        self.status = 0

    def begun(self) -> None:
        """The first word of an answer is there."""
        if self._first is None:
            self._first = time.monotonic() - self._start

    def note(self, words: str) -> None:
        """Adds to the line."""
        self._notes.append(words)

    def gone(self) -> None:
        """The client went away before it had its answer, for which there is no status of HTTP."""
        self.status = _GONE

    def print(self) -> None:
        """Prints the line."""
        first = [] if self._first is None else [f"first={self._first:.3f}s"]
        parts = [self._head, str(self.status), *self._notes, *first, f"{time.monotonic() - self._start:.3f}s"]
        print(in_one_line(" ".join(parts)), file=sys.stderr, flush=True)
