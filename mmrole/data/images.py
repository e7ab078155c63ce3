"""Finds and opens the images that records name: below the image folder only, and only as pictures."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from mmrole.base.errors import Problems, UserError, reason, shown
from mmrole.base.paths import resolve_below

if TYPE_CHECKING:
    from PIL import Image

PIXELS = "2: resized in width, then in height"
"""Which pixels models are given, with a number to count up: `mmrole.qwen_vl.image_processing` computes them.

What was begun with other pixels is not gone on with. The first were resized in an order that Pillow chose.
"""

OTHER_BACKEND = "transformers' image processor on Pillow"
OTHER_PIXELS = f"1: {OTHER_BACKEND}"
"""The same of transformers' models: `mmrole.models.vlm.processor` computes them."""


class ImagePathError(UserError, ValueError):
    """An image path that must not or cannot be used. The text names the path and what is wrong."""


class MissingImageError(ImagePathError):
    """An image path that is in order, but there is no such file."""


_COMPOSITIONS: dict[Literal["NFD", "NFC"], str] = {"NFD": "decomposed", "NFC": "composed"}


class HasImage(Protocol):
    """A record that may have an image: a class of `mmrole.data.records`."""

    @property
    def image(self) -> str | None:
        """Path relative to the image folder, if there is an image."""
        ...

    @property
    def where(self) -> object:
        """What messages call the record."""
        ...


ImageRecord = TypeVar("ImageRecord", bound=HasImage)


class Selection(NamedTuple):
    """Records by whether their image is there."""

    usable: list
    missing: list


def path_fault(image: str) -> str | None:
    """What a record's image path must not be, as a predicate ("is empty"); None if it may be looked up."""
    if not image.strip():
        return "is empty"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in image):
        return "has control characters or lone surrogates"
    if "://" in image:
        return "is a URL; only files below the image folder are opened"
    if "\\" in image:
        return "has a backslash; separate folders with /"
    if image.startswith("/"):
        return "is absolute; write it relative to the image folder"
    if "</img>" in image:
        return "has '</img>', which ends the path in a prompt"
    if ".." in PurePosixPath(image).parts:
        return "has '..'; write it relative to the image folder"
    return None


def resolve_image(image_dir: str | os.PathLike, image: str) -> Path:
    """The file of an image path, with all links followed.

    Args:
        image_dir: the image folder (may itself be a link).
        image: a record's path, relative to `image_dir`, with forward slashes. Case matters. A folder on the way may be
            a link to anywhere (`images/COCO/train2017`), but nothing outside of its target is reached through it.

    Raises:
        MissingImageError: there is no such file.
        ImagePathError: the path is empty, absolute or a URL, has control characters, a backslash, `..` or `</img>`, is
            not a regular file, or leads out of `image_dir` through a link.
    """
    fault = path_fault(image)
    if fault:
        raise ImagePathError(f"image {shown(image)} {fault}")
    path = resolve_below(image_dir, image)
    if path is None:
        raise ImagePathError(f"image {shown(image)} leads out of {image_dir} through a link")
    try:
        if not path.exists():
            raise MissingImageError(f"image {shown(image)} is not in {image_dir}{_hint(image_dir, image)}")
        if not path.is_file():  # a folder, a pipe, a device
            raise ImagePathError(f"image {shown(image)} is not a file")
    except OSError as error:  # a name too long, a folder that must not be read
        raise ImagePathError(f"image {shown(image)} cannot be used: {reason(error)}") from None
    return path


def open_image(path: str | os.PathLike) -> "Image.Image":
    """Decodes an image file into RGB.

    Raises:
        ImagePathError: it is not an image of one of `pillow.FORMATS`, or damaged.
    """
    return _decoded(path, str(path))


def open_photo(path: str | os.PathLike) -> "Image.Image":
    """Decodes an image file as a viewer shows it, the way up that the camera has noted if that can be read.

    Images of records are opened with `open_image`: the published code turns none, and the figures depend on it.

    Raises:
        ImagePathError: there is no such file, it must not be read, is not an image of one of `pillow.FORMATS`, or
            damaged.
    """
    try:
        if not Path(path).is_file():
            raise ImagePathError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    except OSError as error:
        raise ImagePathError(f"{path}: {reason(error)}") from None
    image = open_image(path)
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def select_images(
    records: Sequence[ImageRecord],
    image_dir: str | os.PathLike,
    problems: Problems,
    skip_missing: bool = False,
) -> Selection:
    """Checks the image of every record: that its path is allowed, that it is there, and that it decodes.

    Args:
        records: the records, in order.
        image_dir: the image folder.
        problems: receives one line per record whose image cannot be used, or one if there is no image folder.
        skip_missing: records whose image file is not there are no problem.

    Returns:
        The usable records and those without their image file, both in order.
    """
    selection = Selection([], [])
    if not Path(image_dir).is_dir():
        problems.add(f"the image folder {image_dir} does not exist")
        return selection
    faults = _check({record.image for record in records if record.image is not None}, image_dir)
    for record in records:
        fault = None if record.image is None else faults.get(record.image)
        missing = isinstance(fault, MissingImageError)
        if fault is None:
            selection.usable.append(record)
        elif missing:
            selection.missing.append(record)
        if fault is not None and not (missing and skip_missing):
            problems.add(f"{record.where}: {fault}")
    return selection


def has_more_than_bytes(path: str | os.PathLike) -> bool:
    """Whether an image that can be decoded has values of more than 8 bits in one channel, all cut off at 255."""
    from mmrole.base.pillow import FORMATS, Image

    with Image.open(path, formats=FORMATS) as image:
        return image.mode[0] in "IF"


def _hint(image_dir: str | os.PathLike, image: str) -> str:
    """Whether a missing file is there under a name that looks the same: macOS and others compose letters otherwise."""
    for form, meaning in _COMPOSITIONS.items():
        other = unicodedata.normalize(form, image)
        if other != image and os.path.exists(os.path.join(image_dir, other)):
            return f"; did you mean the file of that name in {meaning} letters (Unicode {form})? Write both alike"
    return ""


def _check(images: Iterable[str], image_dir: str | os.PathLike) -> dict[str, ImagePathError]:
    """What is wrong, by image path."""

    def check(image: str) -> ImagePathError | None:
        try:
            # Decoding at an eighth of the size (JPEG only) reads the whole file, and is several times faster.
            _decoded(resolve_image(image_dir, image), image, size=(1, 1))
        except ImagePathError as error:
            return error
        return None

    images = list(images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {image: fault for image, fault in zip(images, pool.map(check, images), strict=True) if fault}


def _decoded(path: str | os.PathLike, name: str, size: tuple[int, int] | None = None) -> "Image.Image":
    from mmrole.base.pillow import decode

    try:
        return decode(path, size)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImagePathError(f"image {shown(name)} cannot be decoded: {text}") from None


def _turn(image: "Image.Image") -> "Image.Transpose | None":
    """What brings a photo the right way up."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of damaged EXIF data, in as many ways as decoders
        return None
    method = Image.Transpose
    turns = (
        *(method.FLIP_LEFT_RIGHT, method.ROTATE_180, method.FLIP_TOP_BOTTOM, method.TRANSPOSE),
        *(method.ROTATE_270, method.TRANSVERSE, method.ROTATE_90),
    )
    return turns[orientation - 2] if isinstance(orientation, int) and 2 <= orientation <= 8 else None
