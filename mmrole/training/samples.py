"""Training samples of the agent and of the reward model: read, checked with their images, markup told from text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_utils.dataset import IMAGE_FOLDER
from data_utils.errors import Problems, UserError, Where, shown
from data_utils.files import read_records
from data_utils.images import ImagePathError, resolve_image, select_images
from data_utils.prompts import split_pictures
from data_utils.records import TrainSample


class TrainingTurn(NamedTuple):
    """One turn of a conversation. The text is plain: what looks like markup or a special token in it is text."""

    speaker: str
    """"user" or "assistant"."""
    text: str
    images: tuple[Path, ...] = ()
    """Files of the pictures before the text, with all links followed: equal paths are the same image."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A conversation to learn from.

    Attributes:
        where: file, index and id, for messages.
        turns: oldest first.
        system: the sample's own system message, which the published recipe does not use.
    """

    where: Where
    turns: tuple[TrainingTurn, ...]
    system: str | None = None


class _Picture(NamedTuple):
    """A use of an image, for the check of the files; `image` is relative to the image folder."""

    image: str
    where: Where


def read_samples(
    path: str | os.PathLike, image_dir: str | os.PathLike, *, decode_images: bool = True
) -> list[TrainingSample]:
    """Reads a training file as published (`train_85k.json`, `RM-train_23k.json`) and checks it with its images.

    Only a leading run of `Picture N: <img>PATH</img>` lines in a user turn is markup. PATH is relative to the current
    folder, the repository root, and must lie below `image_dir`; `images/…` always means `image_dir`, wherever that is.
    Without markup, an `image` field (relative to `image_dir`) is the picture of the first turn.

    Args:
        path: a JSON file of a list of objects with `conversations`.
        image_dir: the image folder; nothing outside of it is opened.
        decode_images: decode every image once, to find damaged ones; otherwise they only need to be there.

    Returns:
        The samples in the order of the file.

    Raises:
        UserError: the file, records or images cannot be used; all problems together.
    """
    problems = Problems()
    records = read_records(path, TrainSample, problems)
    if not records and not problems:
        raise UserError(f"{path} holds no samples; give another --data_path")
    if not Path(image_dir).is_dir():
        problems.add(f"the image folder {image_dir} does not exist; give another --image_dir")
        decode_images = False
    turns = [_split(record, image_dir, problems) for record in records]
    pictures = [
        _Picture(image, record.where)
        for record, record_turns in zip(records, turns, strict=True)
        for image in dict.fromkeys(image for turn in record_turns for image in turn.images)
    ]
    if decode_images:
        select_images(pictures, image_dir, problems)
    files = _resolve(pictures, image_dir, None if decode_images else problems)
    problems.raise_if_any(
        f"{path} cannot be trained on",
        "correct the file or its images (python -m data_utils.check tells more) and run the same command again",
    )
    return [
        TrainingSample(
            record.where,
            tuple(
                TrainingTurn(turn.speaker, turn.text, tuple(files[image] for image in turn.images)) for turn in split
            ),
            record.system,
        )
        for record, split in zip(records, turns, strict=True)
    ]


class _SplitTurn(NamedTuple):
    """A turn with its images relative to the image folder."""

    speaker: str
    text: str
    images: tuple[str, ...]

    def resolved(self, files: dict[str, Path]) -> TrainingTurn:
        return TrainingTurn(self.speaker, self.text, tuple(files[image] for image in self.images))


def _split(record: TrainSample, image_dir: str | os.PathLike, problems: Problems) -> list[_SplitTurn]:
    """Tells markup from text."""
    turns = []
    for turn in record.turns:
        images, text = split_pictures(turn.value) if turn.speaker == "user" else ([], turn.value)
        below = [_below(image, image_dir) for image in images]
        for image, relative in zip(images, below, strict=True):
            if relative is None:
                problems.add(f"{record.where}: image {shown(image)} is not below the image folder {image_dir}")
        turns.append(_SplitTurn(turn.speaker, text, tuple(image for image in below if image is not None)))
    if record.image is None:
        return turns
    named = [image for turn in turns for image in turn.images]
    if not named:
        turns[0] = turns[0]._replace(images=(record.image,))
    elif record.image not in named:
        problems.add(f'{record.where}: "image" is {shown(record.image)}, but the markup names {shown(named[0])}')
    return turns


def _below(image: str, image_dir: str | os.PathLike) -> str | None:
    """A path of markup relative to the image folder, None if it is not below it.

    Whether it exists, or leads out through `..` or a link, is for `resolve_image` to find.
    """
    folder = Path(image_dir)
    for root in (f"{IMAGE_FOLDER}/", f"{os.path.relpath(folder)}/", f"{folder}/"):
        if image.startswith(root):
            return image.removeprefix(root)
    return None


def _resolve(pictures: list[_Picture], image_dir: str | os.PathLike, problems: Problems | None) -> dict[str, Path]:
    """The files by image path; those that cannot be used are left out and noted in `problems`."""
    files: dict[str, Path] = {}
    faults: dict[str, ImagePathError] = {}
    for picture in pictures:
        if picture.image not in files and picture.image not in faults:
            try:
                files[picture.image] = resolve_image(image_dir, picture.image)
            except ImagePathError as error:
                faults[picture.image] = error
        if picture.image in faults and problems is not None:
            problems.add(f"{picture.where}: {faults[picture.image]}")
    return files
