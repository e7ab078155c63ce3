"""Image keys: one number for an image and a row of its features, wherever positions show images.

A key names the image by a number that its owner gives it, so equal keys mean the same features in all sequences that
are merged. Keys are in the order of images, then rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrole.prompt_tree.sequences import TEXT

# More rows than any model makes of an image; 2**43 images are left.
_MOST_ROWS = 1 << 20


class ImagePlace(NamedTuple):
    """Positions that show an image, as ranges in order, each its first and one behind its last; `number` tells images
    apart."""

    spans: Sequence[tuple[int, int]]
    number: int


def image_keys(length: int, images: Iterable[ImagePlace]) -> np.ndarray | None:
    """The keys of a sequence's positions, int64 [length]; None if it shows no image."""
    keys = None
    for spans, number in images:
        if keys is None:
            keys = np.full(length, TEXT, dtype=np.int64)
        row = number * _MOST_ROWS
        for start, stop in spans:
            keys[start:stop] = np.arange(row, row + stop - start)
            row += stop - start
    return keys


def image_rows(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image and the row of its features that each position shows, int64 [N] both; -1 for text."""
    shows = keys != TEXT
    return np.where(shows, keys // _MOST_ROWS, TEXT), np.where(shows, keys % _MOST_ROWS, TEXT)


def images_shown(keys: np.ndarray) -> list[int]:
    """The numbers of the images that keys [N] name, ascending."""
    return np.unique(keys[keys != TEXT] // _MOST_ROWS).tolist()


def first_viewers(keys: np.ndarray) -> np.ndarray:
    """The first node that sees each one where the rows of an image see each other both ways, int64 [N].

    That is the node itself, and of a row of an image the first of the rows that follow one another up to it.

    Args:
        keys: int64 [N], of the nodes of a tree, each of whose images is there with all of its rows.
    """
    goes_on = (keys[1:] != TEXT) & (keys[:-1] != TEXT) & (keys[1:] == keys[:-1] + 1) & (keys[1:] % _MOST_ROWS != 0)
    starts = np.append(True, ~goes_on)[: len(keys)]
    return np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))


def feature_rows(keys: np.ndarray, rows: Mapping[int, int]) -> np.ndarray:
    """Which row each position takes of the features of images that are laid one after the other.

    Args:
        keys: int64 [N].
        rows: numbers of rows by image, in the order in which the images are laid.

    Returns:
        int64 [N], -1 for text.

    Raises:
        KeyError: a key names another image.
        ValueError: an image has more rows than its positions show, or fewer.
    """
    starts = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
    numbers = images_shown(keys)
    firsts = np.array([starts[number] for number in numbers], dtype=np.int64)
    found = np.full(keys.shape, -1, dtype=np.int64)
    shows = keys != TEXT
    places, own = np.searchsorted(numbers, keys[shows] // _MOST_ROWS), keys[shows] % _MOST_ROWS
    most = np.zeros(len(numbers), dtype=np.int64)
    np.maximum.at(most, places, own + 1)
    for number, shown in zip(numbers, most.tolist(), strict=True):
        if shown != rows[number]:
            raise ValueError(f"an image has {rows[number]} rows of features, and {shown} positions that show it")
    found[shows] = firsts[places] + own
    return found
