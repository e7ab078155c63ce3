"""Reads JSON lists and objects value by value, so that a file of hundreds of megabytes is never held as text."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, TextIO

Json = Any
"""A JSON value as Python has it: None, bool, int, float, str, list or dict."""

JsonObject = dict[str, Any]
"""A JSON object: its values by name."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.eE0-9]*")


def read_values(
    path: str | os.PathLike, decoder: json.JSONDecoder, chunk: int = 1 << 20
) -> list[Json] | dict[str, Json] | None:
    """The content of a file that is one JSON list or object in UTF-8; None if it is anything else.

    What is wrong with such a file is not found out here: a reader of the whole text tells it better.

    Args:
        path: a regular file.
        decoder: decodes the values.
        chunk: characters that are read at once, at least.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with _open(path) as file:
            text = _Text(file, chunk)
            if text.peek() != "{":
                return list(_values(text, decoder))
            return (decoder.object_pairs_hook or dict)(list(_pairs(text, decoder)))
    except (ValueError, RecursionError):  # of decoding, of JSON, of the decoder's hooks
        return None


def first_character(path: str | os.PathLike) -> str:
    """The first character of a file in UTF-8 that is not white space; empty if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with _open(path) as file:
            return _Text(file, 1 << 12).peek()
    except UnicodeDecodeError:
        return ""


def _open(path: str | os.PathLike) -> TextIO:
    return open(path, encoding="utf-8-sig", newline="")


def _values(text: "_Text", decoder: json.JSONDecoder) -> Iterator[Json]:
    """The values of the list that a text is, or `ValueError`."""
    for _ in text.items("[]"):
        yield text.decode(decoder)


def _pairs(text: "_Text", decoder: json.JSONDecoder) -> Iterator[tuple[str, Json]]:
    """The keys and values of the object that a text is, or `ValueError`."""
    for _ in text.items("{}"):
        if text.peek() != '"':
            raise ValueError("no key")
        key = text.decode(decoder)
        text.expect(":")
        yield key, text.decode(decoder)


def _end_of_run(characters: re.Pattern[str], text: str, start: int) -> int:
    """Where the run of characters that begins at `start` ends; at `start` if there is none."""
    run = characters.match(text, start)
    return start if run is None else run.end()


class _Text:
    """The part of a file's text that has been read and is still needed."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self._file, self._chunk = file, chunk
        self._text, self._start, self._complete = "", 0, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        self._start = _end_of_run(_SPACE, self._text, self._start)
        while self._start == len(self._text) and not self._complete:
            self._read_on()
            self._start = _end_of_run(_SPACE, self._text, self._start)
        return self._text[self._start : self._start + 1]

    def expect(self, characters: str) -> str:
        """Takes the next character, which must be one of `characters`, else `ValueError`."""
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"none of {characters}")
        self._start += 1
        return found

    def items(self, brackets: str) -> Iterator[None]:
        """Stops at each item between a pair of brackets, with commas between them and nothing behind, for the caller
        to take it; or raises `ValueError`."""
        opening, closing = brackets
        self.expect(opening)
        if self.peek() == closing:
            self.expect(closing)
        else:
            following = ","
            while following == ",":
                yield
                following = self.expect(f",{closing}")
        if self.peek():
            raise ValueError("something follows")

    def decode(self, decoder: json.JSONDecoder) -> Json:
        """Takes the next value, or raises `ValueError`."""
        self.peek()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._start)
            except json.JSONDecodeError:
                if self._complete:
                    raise
            else:
                # A number may go on behind its end, even behind `1.` or `1e-`, of which only the 1 is decoded yet.
                if _end_of_run(_NUMBER, self._text, end) < len(self._text) or self._complete:
                    self._start = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Adds as much text as there is, and at least a chunk: a value of any size is read a few times at most."""
        text, self._text = self._text, ""  # the only name of the text, which then grows in place
        text = text[self._start :]
        most, self._start = len(text) + max(len(text), self._chunk), 0
        while len(text) < most and not self._complete:
            more = self._file.read(self._chunk)
            text += more
            self._complete = not more
        self._text = text
