"""The pictures of training conversations, told from their text: what training shows and what the check reports.

Text in a record is other people's, and never becomes a picture where the record says itself which pictures it has. So
markup counts at the beginning of a user turn, `<image>` in as many places as a record has images, and nothing else.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mmrole.data.dataset import IMAGE_FOLDER
from mmrole.data.records import TrainingRecord, Turn

OTHER_MEDIA = ("video", "videos", "audio", "audios")
"""Fields of other tools' records for what is not trained on here."""

_TAG = re.compile("<(/?)img>", re.IGNORECASE)
_PLACEHOLDER = re.compile("<image>", re.IGNORECASE)
_OTHER_PLACEHOLDER = re.compile("<(?:video|audio)>", re.IGNORECASE)
_LONGEST_LABEL = 40
# `Picture 1:` of Qwen-VL and ms-swift, and what people write for it: `Image:`, `图1：`.
_LABEL = re.compile(r"(?:[^\W\d_]+[ _#-]?(?:\d+ ?[:：]?|[:：]))?")


class Picture(NamedTuple):
    """A picture in a turn."""

    path: str
    """As the record has it: from the repository root (`images/…`) in markup, below the image folder in a field."""
    label: str
    """The text before it that names it, `Picture 1: `."""
    span: tuple[int, int] | None = None
    """Where the path stands in the turn's value; None if it is from the field `image` or `images`."""


class PicturedTurn(NamedTuple):
    """A turn of a training conversation."""

    speaker: Literal["user", "assistant"]
    content: tuple[str | Picture, ...]
    """Plain texts and pictures in the order in which the model reads them."""
    spans: tuple[tuple[int, int], ...]
    """Where the plain text stands in the turn's value."""

    @property
    def pictures(self) -> list[Picture]:
        """The pictures, in order."""
        return [part for part in self.content if isinstance(part, Picture)]

    @property
    def text(self) -> str:
        """The plain text, without the end of the line that the pictures before it stand on."""
        text = "".join(part for part in self.content if isinstance(part, str))
        return re.sub(r"\A\r?\n", "", text) if isinstance(self.content[0], Picture) else text


class PicturedConversation(NamedTuple):
    """A training conversation as the model reads it."""

    turns: list[PicturedTurn]
    faults: list[str]
    """Pictures that are neither shown nor plain text: why the sample cannot be trained on."""
    quotes: bool
    """Whether there is `<img>…</img>` that is plain text, since the record's fields say which pictures it has."""

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all turns, in order."""
        return [picture for turn in self.turns for picture in turn.pictures]


def read_conversation(record: TrainingRecord) -> PicturedConversation:
    """Tells the pictures of a training sample from its text.

    - `<img>PATH</img>` at the beginning of a user turn is a picture, and so is each that follows with nothing between
      but white space and a label (`Picture 2:`). It is read exactly as it is written, number and line end included.
    - Without any markup, the images of the record's field take the places of `<image>`, or come before the first turn.
    """
    faults = [f'"{key}" is given, but only pictures are trained on' for key in OTHER_MEDIA if record.json.get(key)]
    turns = [_split_markup(turn) if turn.speaker == "user" else _plain(turn) for turn in record.turns]
    is_marked = any(turn.pictures for turn in turns)
    if not (is_marked and record.images):
        faults += _placeholder_faults(record, turns)
    if record.images and not is_marked and not faults:
        turns = _place_images(record)
    strays = list(_strays(record, turns))
    if not record.images:
        faults += [f"{place} has <img>…</img> where no picture can be; put it first in a user turn" for place in strays]
    return PicturedConversation(turns, faults, bool(record.images and strays))


def begins_with_picture(value: str) -> bool:
    """Whether the text of a user turn begins with a picture's markup."""
    return bool(_split_markup(Turn("user", value)).pictures)


def below_folder(path: str, image_dir: str | os.PathLike) -> str | None:
    """A path of markup relative to the image folder, None if it is not below it.

    `images/…` always means the image folder; a path that begins with its own name is taken, too. Whether the file
    exists, or leads out through `..` or a link, is for `images.resolve_image` to find.
    """
    folder = Path(image_dir)
    for root in (f"{IMAGE_FOLDER}/", f"{os.path.relpath(folder)}/", f"{folder}/"):
        if path.startswith(root):
            return path.removeprefix(root)
    return None


def _plain(turn: Turn) -> PicturedTurn:
    return PicturedTurn(turn.speaker, (turn.value,), ((0, len(turn.value)),))


def _split_markup(turn: Turn) -> PicturedTurn:
    """A user turn whose pictures, if it begins with any, are markup."""
    value, pictures, start = turn.value, [], 0
    for opening, path_end, end in _marked(value):
        label = value[start:opening]
        if not _is_label(label):
            break
        path_start = opening + len("<img>")
        pictures.append(Picture(value[path_start:path_end], label, (path_start, path_end)))
        start = end
    if start == len(value):
        return PicturedTurn(turn.speaker, tuple(pictures), ())
    return PicturedTurn(turn.speaker, (*pictures, value[start:]), ((start, len(value)),))


def _marked(value: str) -> Iterator[tuple[int, int, int]]:
    """The places of `<img>PATH</img>`: its start, the end of PATH, its end."""
    opening = None
    for tag in _TAG.finditer(value):
        if not tag[1]:
            opening = tag.start() if opening is None else opening
        elif opening is not None:
            yield opening, tag.start(), tag.end()
            opening = None


def _is_label(text: str) -> bool:
    text = text.strip()
    return len(text) <= _LONGEST_LABEL and _LABEL.fullmatch(text) is not None


def _placeholder_faults(record: TrainingRecord, turns: Sequence[PicturedTurn]) -> Iterator[str]:
    """What is wrong with `<image>` and the like in user turns without markup."""
    places, images = 0, len(record.images)
    for number, turn in enumerate(turns):
        if turn.speaker == "user" and not turn.pictures:
            places += len(_PLACEHOLDER.findall(turn.text))
            if not images and (match := _OTHER_PLACEHOLDER.search(turn.text)):
                yield f"conversations[{number}] has {match[0]}, but only pictures are trained on"
    if places and places != images:
        found = f"{images:,} image{'' if images == 1 else 's'}" if images else "no image"
        yield f'<image> stands in {places:,} place{"" if places == 1 else "s"}, but "images" names {found}'


def _place_images(record: TrainingRecord) -> list[PicturedTurn]:
    """The turns with the images of the record's field in the places of `<image>`, else before the first turn."""
    first, *later = record.turns
    images = enumerate(record.images, 1)
    turns = [_fill(turn, images) if turn.speaker == "user" else _plain(turn) for turn in record.turns]
    if any(turn.pictures for turn in turns):
        return turns
    labels = ["Picture 1: ", *(f"\nPicture {number}: " for number in range(2, len(record.images) + 1))]
    content = map(Picture, record.images, labels)
    pictured = PicturedTurn(first.speaker, (*content, "\n" + first.value), ((0, len(first.value)),))
    return [pictured, *map(_plain, later)]


def _fill(turn: Turn, images: Iterator[tuple[int, str]]) -> PicturedTurn:
    """A user turn with the next images, numbered, in the places of `<image>`."""
    content: list[str | Picture] = []
    spans, start = [], 0
    for match in _PLACEHOLDER.finditer(turn.value):
        if match.start() > start:
            content.append(turn.value[start : match.start()])
            spans.append((start, match.start()))
        number, path = next(images)
        line = "\n" if content and isinstance(content[-1], Picture) else ""
        content.append(Picture(path, f"{line}Picture {number}: "))
        start = match.end()
    if start < len(turn.value):
        rest = turn.value[start:]
        spans.append((start, len(turn.value)))
        leading = content and not any(isinstance(part, str) and part.strip() for part in content)
        # As the published files have it: pictures before a text stand on lines of their own.
        content.append("\n" + rest if leading and rest[0] not in "\r\n" else rest)
    return PicturedTurn(turn.speaker, tuple(content), tuple(spans))


def _strays(record: TrainingRecord, turns: Sequence[PicturedTurn]) -> Iterator[str]:
    """What texts with `<img>…</img>` are called."""
    if record.system and any(_marked(record.system)):
        yield "system"
    for number, (turn, read) in enumerate(zip(record.turns, turns, strict=True)):
        if any(any(_marked(turn.value[start:end])) for start, end in read.spans):
            yield f"conversations[{number}] ({turn.speaker})"
