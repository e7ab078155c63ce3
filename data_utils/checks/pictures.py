"""Checks of image paths in records, and of the files that they name."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import NamedTuple

from data_utils.checks.problems import Fix, Path, Place, Problem
from data_utils.checks.surroundings import Source, Surroundings
from data_utils.checks.texts import path_name
from mmrole.base.errors import Problems, shown
from mmrole.base.json_values import Json
from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.images import has_more_than_bytes, path_fault, resolve_image, select_images
from mmrole.data.pictures import PicturedConversation, below_folder
from mmrole.data.records import TrainingRecord

# What folders are called in the published layout, by their names in lower case; annotations.json writes Toy_story.
_FOLDERS = {"coco": "COCO", "toy_story": "Toy_Story"}
_ELSEWHERE = re.compile(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://")


class ImageUse(NamedTuple):
    """An image that a record needs."""

    place: Place
    image: str
    """Path relative to the image folder, as it is after repairs."""


class _Names(NamedTuple):
    """A value of a record that names images."""

    path: Path
    images: list[str]
    taken: Callable[[str], str | None]
    """The path relative to the image folder of an image that is written as it may be there; None of another."""
    repaired: Callable[[list[str]], Json]
    """The value with other images, whose paths are relative to the image folder."""


def check_image(image: str, place: Place, around: Surroundings) -> Iterator[Problem | ImageUse]:
    """What is wrong with the field `image` of a dialogue, an annotation or a sample, and the image itself."""
    yield from _check(_Names(("image",), [image], _plain, lambda images: images[0]), place, around)


def check_pictures(
    record: TrainingRecord, conversation: PicturedConversation, place: Place, source: Source
) -> Iterator[Problem | ImageUse]:
    """What is wrong with the pictures of a training sample, and the images that they need."""
    yield from (Problem("picture_form", place, fault) for fault in conversation.faults)
    marked, field = (
        [found for names in all_names for found in _check(names, place, source.around)]
        for all_names in (_in_markup(record, conversation, source), _in_fields(record, source))
    )
    yield from (*marked, *field)
    in_markup, in_field = ([found.image for found in part if isinstance(found, ImageUse)] for part in (marked, field))
    missing = [image for image in in_field if image not in in_markup]
    if in_markup and missing:
        text = f"image is {shown(missing[0])}, the markup names {', '.join(map(shown, in_markup))}"
        yield Problem("picture_mismatch", place, text)


class ImageFiles:
    """The files of an image folder, each looked at once."""

    def __init__(self, image_dir: str | os.PathLike) -> None:
        self._image_dir = image_dir
        self._faults: dict[str, tuple[str, str] | None] = {}

    def check(self, pictures: Collection[ImageUse]) -> Iterator[Problem]:
        """The pictures whose file is not there, cannot be decoded or loses its shades, each once a record."""
        self._look_at({picture.image for picture in pictures} - self._faults.keys())
        for picture in dict.fromkeys(pictures):
            if fault := self._faults[picture.image]:
                yield Problem(fault[0], picture.place, fault[1])

    def _look_at(self, images: Collection[str]) -> None:
        records = [_Named(image, shown(image)) for image in images]
        faults = Problems()
        usable, missing = (set(found) for found in select_images(records, self._image_dir, faults))
        for record in usable:
            deep = has_more_than_bytes(resolve_image(self._image_dir, record.image))
            text = f"{record.where} has more than 8 bits a pixel; all above 255 is white to the model"
            self._faults[record.image] = ("deep_image", text) if deep else None
        faulty = [record for record in records if record not in usable]
        for record, text in zip(faulty, faults.texts, strict=True):  # they name the records in their order
            kind = "missing_image" if record in missing else "undecodable_image"
            self._faults[record.image] = (kind, text.removeprefix(f"{record.where}: image "))


class _Named(NamedTuple):
    """An image as `select_images` takes it."""

    image: str
    where: str


def _in_markup(record: TrainingRecord, conversation: PicturedConversation, source: Source) -> Iterator[_Names]:
    for number, turn in enumerate(conversation.turns):
        paths = [picture.path for picture in turn.pictures if picture.span]
        spans = [picture.span for picture in turn.pictures if picture.span]
        value = record.turns[number].value

        def repaired(images: list[str], value: str = value, spans: list[tuple[int, int]] = spans) -> str:
            for image, (start, end) in reversed(list(zip(images, spans, strict=True))):
                value = f"{value[:start]}{IMAGE_FOLDER}/{image}{value[end:]}"
            return value

        if paths:
            yield _Names(("conversations", number, "value"), paths, partial(_below, source), repaired)


def _in_fields(record: TrainingRecord, source: Source) -> Iterator[_Names]:
    key = "images" if record.json.get("images") else "image"
    value = record.json.get(key)
    for number, image in enumerate(record.images):
        entry = value[number] if isinstance(value, list) else value
        path = (key, *([number] if isinstance(value, list) else []), *(["path"] if isinstance(entry, dict) else []))
        yield _Names(path, [image], lambda image: _plain(image) or _below(source, image), lambda images: images[0])


def _check(names: _Names, place: Place, around: Surroundings) -> Iterator[Problem | ImageUse]:
    relative = [names.taken(image) or _relative(image) for image in names.images]
    for image, plain in zip(names.images, relative, strict=True):
        fault = path_fault(plain)
        if fault or (names.taken(image) is None and _ELSEWHERE.match(image)):
            fault = path_fault(image) or fault or "is not below the image folder"
            yield Problem("image_outside", place, f"{path_name(names.path)}: {shown(image)} {fault}")
            return
    right = [_in_right_case(image, around) for image in relative]
    fix = Fix(names.path, names.repaired(right))
    for image, plain in zip(names.images, relative, strict=True):
        if names.taken(image) is None:
            root = f"{IMAGE_FOLDER}/" if names.path[-1] == "value" else ""
            yield Problem("image_form", place, f"{shown(image)} should be {shown(root + plain)}", fix)
            break
    for plain, image in zip(relative, right, strict=True):
        if plain != image:
            yield Problem("image_case", place, f"{shown(plain)} should be {shown(image)}", fix)
            break
    yield from (ImageUse(place, image) for image in right)


def _plain(image: str) -> str | None:
    return image if image == _relative(image) else None


def _below(source: Source, image: str) -> str | None:
    below = below_folder(image, source.image_dir or IMAGE_FOLDER)
    return None if below is None or path_fault(below) else below


def _relative(image: str) -> str:
    image = re.sub(r"/{2,}", "/", image.replace("\\", "/"))
    return re.sub(r"\A(\./)+", "", image).removeprefix(f"{IMAGE_FOLDER}/")


def _in_right_case(image: str, around: Surroundings) -> str:
    folder, slash, rest = image.partition("/")
    return around.folders.get(folder.casefold(), _FOLDERS.get(folder.casefold(), folder)) + slash + rest
