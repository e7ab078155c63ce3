"""Training samples of the agent and of the reward model: read, checked with their images, markup told from text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmrole.base.errors import Problems, UserError, Where, shown
from mmrole.base.files import read_records
from mmrole.data.images import ImagePathError, resolve_image, select_images
from mmrole.data.messages import LabelledImage, Message
from mmrole.data.pictures import Picture, PicturedConversation, PicturedTurn, below_folder, read_conversation
from mmrole.data.records import TrainingRecord


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A conversation to learn from.

    Attributes:
        where: file, index and id, for messages.
        turns: oldest first, of user and assistant; images are files with all links followed, each with its label.
        system: the sample's own system message, which the published recipe does not use.
        quotes: whether there is `<img>…</img>` in a text that is no picture.
    """

    where: Where
    turns: tuple[Message, ...]
    system: str | None = None
    quotes: bool = False


class _Picture(NamedTuple):
    """A use of an image, for the check of the files; `image` is relative to the image folder."""

    image: str
    where: Where


def read_samples(
    path: str | os.PathLike, image_dir: str | os.PathLike, *, decode_images: bool = True
) -> list[TrainingSample]:
    """Reads a training file as published (`train_85k.json`, `RM-train_23k.json`) and checks it with its images.

    What is a picture is told by `mmrole.data.pictures`. A path of markup is relative to the current folder, the
    repository root, and must lie below `image_dir`; `images/…` always means `image_dir`, wherever that is. A path of a
    field is relative to `image_dir`, or else as in markup.

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
    records = read_records(path, TrainingRecord, problems)
    if not records and not problems:
        raise UserError(f"{path} holds no samples; give another --data_path")
    if not Path(image_dir).is_dir():
        problems.add(f"the image folder {image_dir} does not exist; give another --image_dir")
        decode_images = False
    conversations = [_read(record, image_dir, problems) for record in records]
    pictures = [
        _Picture(image, record.where)
        for record, conversation in zip(records, conversations, strict=True)
        for image in dict.fromkeys(picture.path for picture in conversation.pictures)
    ]
    if decode_images:
        select_images(pictures, image_dir, problems)
    files = _resolve(pictures, image_dir, None if decode_images else problems)
    problems.raise_if_any(
        f"{path} cannot be trained on",
        "correct the file or its images (python -m data_utils.check tells more) and run the same command again",
    )
    return [
        TrainingSample(record.where, _with_files(conversation, files), record.system, conversation.quotes)
        for record, conversation in zip(records, conversations, strict=True)
    ]


def _read(record: TrainingRecord, image_dir: str | os.PathLike, problems: Problems) -> PicturedConversation:
    """The conversation with paths relative to the image folder; those that cannot be are left out and noted."""
    conversation = read_conversation(record)
    for fault in conversation.faults:
        problems.add(f"{record.where}: {fault}")
    turns = [
        turn._replace(content=tuple(_relative(turn, record.where, image_dir, problems))) for turn in conversation.turns
    ]
    conversation = conversation._replace(turns=turns)
    named = [picture.path for picture in conversation.pictures]
    for image in record.images if named else ():
        if _below_or_own(image, image_dir) not in named:
            problems.add(f'{record.where}: "image" is {shown(image)}, but the markup names {shown(named[0])}')
    return conversation


def _relative(
    turn: PicturedTurn, where: Where, image_dir: str | os.PathLike, problems: Problems
) -> Iterator[str | Picture]:
    for part in turn.content:
        if isinstance(part, str):
            yield part
        elif part.span is None:
            yield part._replace(path=_below_or_own(part.path, image_dir))
        elif (image := below_folder(part.path, image_dir)) is not None:
            yield part._replace(path=image)
        else:
            problems.add(f"{where}: image {shown(part.path)} is not below the image folder {image_dir}")


def _with_files(conversation: PicturedConversation, files: dict[str, Path]) -> tuple[Message, ...]:
    def shown(part: str | Picture) -> str | LabelledImage:
        return part if isinstance(part, str) else LabelledImage(files[part.path], part.label)

    return tuple(Message(turn.speaker, tuple(map(shown, turn.content))) for turn in conversation.turns)


def _below_or_own(image: str, image_dir: str | os.PathLike) -> str:
    """A path of a field relative to the image folder, which it is already or, as in markup, begins with."""
    below = below_folder(image, image_dir)
    return image if below is None or os.path.exists(os.path.join(image_dir, image)) else below


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
