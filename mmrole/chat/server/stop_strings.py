"""Texts that end a reply, found wherever pieces of it are cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Reads a reply piece by piece, up to the first of some texts.

    What could be the beginning of one of them waits for what follows.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def read(self, piece: str) -> str:
        """What of the reply is known to be said, with this piece. Nothing more once `found`."""
        if self.found:
            return ""
        text = self._held + piece
        # The one that ends first, so that it does not matter how the reply is cut.
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """What waited, where nothing follows any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of another one, which is not in it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
