"""The text of a reply in the making, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mmrole.models.families import Family


class ReplyText:
    """Turns the tokens of a reply into pieces of text, which together are the text without white space around it.

    Halves of characters, and white space that may be the last, wait for what follows them.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0
        self._ended = False
        self._begun = False
        self._held = ""

    def grow(self, tokens: Sequence[int], ended: bool) -> str:
        """The text that has become known; a reply that starts anew says nothing twice.

        Args:
            tokens: all of the reply so far.
            ended: whether they are the last.
        """
        if self._ended or (len(tokens) <= self._read and not ended):
            return ""
        new = self._family.decode_piece(tokens[self._read :])
        self._read, self._ended = max(self._read, len(tokens)), ended
        text = self._held + self._decoder.decode(new, final=ended)
        piece = text.rstrip()
        self._held = text[len(piece) :]
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece
