"""Which images the requests of an engine show, and who still needs them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource


class ImageView(NamedTuple):
    """An image, and whether it is `EncodedImage.among_others`: what its features follow from."""

    source: ImageSource
    among_others: bool = False


@dataclass
class _Entry:
    view: ImageView
    users: int = 0


class ImageTable:
    """Numbers images: the same file, or the same picture, read alike, has one number as long as somebody uses it."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Path | ImageFile | int, bool], int] = {}
        self._next_number = itertools.count()
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def acquire(self, view: ImageView) -> int:
        """The number of an image, which is kept until it has been released as often as acquired."""
        identity = _identity(view)
        if identity not in self._numbers:
            self._numbers[identity] = next(self._next_number)
        number = self._numbers[identity]
        self._entries.setdefault(number, _Entry(view)).users += 1
        return number

    def view(self, number: int) -> ImageView:
        """The image with a number."""
        return self._entries[number].view

    def release(self, number: int) -> bool:
        """One user less; returns whether that was the last one."""
        entry = self._entries[number]
        entry.users -= 1
        if entry.users:
            return False
        del self._entries[self._numbers.pop(_identity(entry.view))]
        return True

    def clear(self) -> list[int]:
        """Releases all images; returns their numbers."""
        numbers = list(self._entries)
        self._entries.clear()
        self._numbers.clear()
        return numbers


def _identity(view: ImageView) -> tuple[Path | ImageFile | int, bool]:
    # As long as an entry holds a picture, its id cannot become another picture's.
    return id(view.source) if isinstance(view.source, Image.Image) else view.source, view.among_others
