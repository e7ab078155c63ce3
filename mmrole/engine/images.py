"""Which images the requests of an engine show, and who still needs them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource


@dataclass
class _Entry:
    source: ImageSource
    users: int = 0


class ImageTable:
    """Numbers images: the same file, or the same picture, has one number as long as somebody uses it."""

    def __init__(self) -> None:
        self._numbers: dict[Path | ImageFile | int, int] = {}
        self._next_number = itertools.count()
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def acquire(self, source: ImageSource) -> int:
        """The number of an image, which is kept until it has been released as often as acquired."""
        identity = _identity(source)
        if identity not in self._numbers:
            self._numbers[identity] = next(self._next_number)
        number = self._numbers[identity]
        self._entries.setdefault(number, _Entry(source)).users += 1
        return number

    def source(self, number: int) -> ImageSource:
        """The image with a number."""
        return self._entries[number].source

    def release(self, number: int) -> bool:
        """One user less; returns whether that was the last one."""
        entry = self._entries[number]
        entry.users -= 1
        if entry.users:
            return False
        del self._entries[self._numbers.pop(_identity(entry.source))]
        return True

    def clear(self) -> list[int]:
        """Releases all images; returns their numbers."""
        numbers = list(self._entries)
        self._entries.clear()
        self._numbers.clear()
        return numbers


def _identity(source: ImageSource) -> Path | ImageFile | int:
    # As long as an entry holds a picture, its id cannot become another picture's.
    return id(source) if isinstance(source, Image.Image) else source
