"""Checks of image paths in records, and of the files that they name."""

import os
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from data_utils.checks.context import Surroundings
from data_utils.checks.problems import Fix, Path, Place, Problem
from data_utils.checks.texts import path_name
from data_utils.errors import Problems, shown
from data_utils.images import path_fault, select_images
from data_utils.prompts import picture_markup, split_pictures

Json = Any

# What folders are called in the published layout, by their names in lower case; annotations.json writes Toy_story.
_FOLDERS = {"coco": "COCO", "toy_story": "Toy_Story"}
_IMAGES = "images/"
_ELSEWHERE = re.compile(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://")


class Picture(NamedTuple):
    """An image that a record needs."""

    place: Place
    image: str
    """Path relative to the image folder, as it is after repairs."""


def check_paths(record: dict[str, Json], place: Place, around: Surroundings) -> Iterator[Problem | Picture]:
    """The images that a record of any form names, and what is wrong with the way in which it does.

    Args:
        record: without faults of its shape.
        place: where it is.
        around: the series, whose names are those of image folders.
    """
    field, marked = [], []
    if record.get("image"):
        field = list(_check(place, [record["image"]], ("image",), None, around))
    for number, turn in enumerate(record.get("conversations", ())):
        if turn.get("from") == "user":  # only training samples have markup there
            images, text = split_pictures(turn["value"])
            marked += _check(place, images, ("conversations", number, "value"), text, around)
    yield from field
    yield from marked
    images = [[found.image for found in part if isinstance(found, Picture)] for part in (field, marked)]
    if all(images) and images[0][0] not in images[1]:
        text = f"image is {shown(images[0][0])}, the markup names {', '.join(map(shown, images[1]))}"
        yield Problem("picture_mismatch", place, text)


class ImageFiles:
    """The files of an image folder, each looked at once."""

    def __init__(self, image_dir: str | os.PathLike) -> None:
        self._image_dir = image_dir
        self._faults: dict[str, tuple[str, str] | None] = {}

    def check(self, pictures: Collection[Picture]) -> Iterator[Problem]:
        """The pictures whose file is not there or cannot be decoded, each once a record."""
        self._look_at({picture.image for picture in pictures} - self._faults.keys())
        for picture in dict.fromkeys(pictures):
            if fault := self._faults[picture.image]:
                yield Problem(fault[0], picture.place, fault[1])

    def _look_at(self, images: Collection[str]) -> None:
        records = [_Named(image, shown(image)) for image in images]
        faults = Problems()
        usable, missing = (set(found) for found in select_images(records, self._image_dir, faults, skip_missing=True))
        damaged = [record for record in records if record not in usable and record not in missing]
        for record in usable:
            self._faults[record.image] = None
        for record in missing:
            self._faults[record.image] = ("missing_image", f"{record.where} is not in {self._image_dir}")
        for record, text in zip(damaged, faults.texts, strict=True):  # they name the other records in their order
            self._faults[record.image] = ("undecodable_image", text.removeprefix(f"{record.where}: image "))


class _Named(NamedTuple):
    """An image as `select_images` takes it."""

    image: str
    where: str


def _check(
    place: Place, images: list[str], path: Path, text: str | None, around: Surroundings
) -> Iterator[Problem | Picture]:
    """Checks the image of a field (`text` is None), or those of the markup before a text."""
    relative = [_relative(image) for image in images]
    for image, plain in zip(images, relative, strict=True):
        if _ELSEWHERE.match(image) or path_fault(plain):
            fault = path_fault(image) or path_fault(plain) or "is not below the image folder"
            yield Problem("image_outside", place, f"{path_name(path)}: {shown(image)} {fault}")
            return
    right = [_in_right_case(image, around) for image in relative]
    repaired = right[0] if text is None else picture_markup([_IMAGES + image for image in right]) + text
    root = "" if text is None else _IMAGES
    for image, plain in zip(images, relative, strict=True):
        if image != root + plain:
            yield Problem("image_form", place, f"{shown(image)} should be {shown(root + plain)}", Fix(path, repaired))
            break
    for plain, image in zip(relative, right, strict=True):
        if plain != image:
            yield Problem("image_case", place, f"{shown(plain)} should be {shown(image)}", Fix(path, repaired))
            break
    yield from (Picture(place, image) for image in right)


def _relative(image: str) -> str:
    image = re.sub(r"/{2,}", "/", image.replace("\\", "/"))
    return re.sub(r"\A(\./)+", "", image).removeprefix(_IMAGES)


def _in_right_case(image: str, around: Surroundings) -> str:
    folder, slash, rest = image.partition("/")
    return around.folders.get(folder.casefold(), _FOLDERS.get(folder.casefold(), folder)) + slash + rest
