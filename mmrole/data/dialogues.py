"""Dialogues between characters and people about images, and where their files are in the published layout."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmrole.base.errors import RecordError, Where, shown
from mmrole.base.fields import JsonRecord, read_object, read_optional, read_text
from mmrole.base.json_values import JsonObject
from mmrole.base.paths import files_below, files_in
from mmrole.data.prompts import HUMAN_SPEAKER

TYPES = ("comment", "human-role", "inter-role")
"""The kinds of dialogue, in published order: a remark on an image, a talk with a person, a talk between characters."""

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION = "in-distribution", "out-of-distribution"
DISTRIBUTIONS = (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION)
"""Folders of characters that are trained on, and of those that are kept for Out-Test."""

SOURCES = ("COCO", "script")
"""Where the images of a file come from: the COCO project, or stills of the character's series."""

ID_NAMES = {"comment": "comment", "human-role": "human-role-dialogue", "inter-role": "role-role-dialogue"}
"""How each type is written in the ids of published dialogues: `<Owner>_<name>_<source>_<n>`."""


class Utterance(NamedTuple):
    """What one speaker says at once."""

    speaker: str
    """A character, or `prompts.HUMAN_SPEAKER`."""
    value: str


@dataclass(frozen=True, slots=True)
class Dialogue(JsonRecord):
    """What was said about one image. The record's form is checked here, not whether its speakers make sense."""

    id: str
    image: str
    """Path relative to the image folder."""
    utterances: tuple[Utterance, ...]
    role_info: str
    """Who is in the image; empty if unknown, as are the next two."""
    place_info: str
    scene_info: str

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        facts = {key: read_optional(obj, key, where) or "" for key in ("role_info", "place_info", "scene_info")}
        image, utterances = read_text(obj, "image", where), _utterances(obj, where)
        return facts | {"id": obj["id"], "image": image, "utterances": utterances}

    @property
    def failed(self) -> bool:
        """Whether the generation of the dialogue failed: there is nothing, or only a question."""
        return len(self.utterances) < 2

    @property
    def speakers(self) -> tuple[str, ...]:
        """Everyone who speaks, by first appearance, the human partner included."""
        return tuple(dict.fromkeys(utterance.speaker for utterance in self.utterances))

    @property
    def owner(self) -> str | None:
        """Whose dialogue it is: the character a person talks with, else the second speaker; None if it failed."""
        if self.failed:
            return None
        characters = [speaker for speaker in self.speakers if speaker != HUMAN_SPEAKER]
        return characters[-1] if characters and len(self.speakers) == 2 else None

    @property
    def targets(self) -> tuple[int, ...]:
        """Indices of the utterances of characters: each of them is one sample. None if the dialogue failed."""
        if self.failed:
            return ()
        return tuple(index for index, utterance in enumerate(self.utterances) if utterance.speaker != HUMAN_SPEAKER)

    def sample_id(self, target: int) -> str:
        """The id of the sample whose answer is utterance `target`."""
        return f"{self.id}_{target}"


@dataclass(frozen=True, slots=True)
class Still(JsonRecord):
    """A still of a series with what is known about it: a record of `images/annotations.json`."""

    image: str
    """Path relative to the image folder. The published file writes `Toy_story/` for the folder `Toy_Story/`."""
    role_info: str
    place_info: str
    scene_info: str

    @property
    def id(self) -> str:
        """The image: there is one record for each."""
        return self.image

    @classmethod
    def _id(cls, obj: JsonObject, where: Where) -> str | None:
        return read_text(obj, "image", where)

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        facts = {key: read_optional(obj, key, where) or "" for key in ("role_info", "place_info", "scene_info")}
        return facts | {"image": where.id}


class DialogueFile(NamedTuple):
    """A file of dialogues, by its place in the layout."""

    path: Path
    distribution: str
    type: str
    owner: str | None
    """The character that the file is named after; None if it holds the dialogues of several characters."""
    source: str | None
    """One of `SOURCES`; None if the file holds both."""


def dialogue_files(data_root: str | os.PathLike) -> list[DialogueFile]:
    """The files of dialogues under a folder in the published layout, by distribution, type and name.

    In distribution every character has files of its own, `<type>/<Owner>_{COCO,script}.json`; out of distribution
    there is one file a type, `<type>.json`. Both forms are found in both folders; other files are `overlooked_files`.
    """
    found = []
    for distribution in DISTRIBUTIONS:
        folder = Path(data_root) / "dialogues" / distribution
        for kind in TYPES:
            together = folder / f"{kind}.json"
            if together.is_file():
                found.append(DialogueFile(together, distribution, kind, owner=None, source=None))
            for path in files_in(folder / kind, "*.json"):
                owner, separator, source = path.stem.rpartition("_")
                if separator and source in SOURCES:
                    found.append(DialogueFile(path, distribution, kind, owner.replace("_", " "), source))
                else:
                    found.append(DialogueFile(path, distribution, kind, path.stem.replace("_", " "), source=None))
    return found


def overlooked_files(data_root: str | os.PathLike) -> list[Path]:
    """JSON files in the folder of dialogues that lie where `dialogue_files` does not look, sorted."""
    files = files_below(Path(data_root) / "dialogues", "*.json")
    return [path for path in files if is_overlooked(path, data_root)]


def is_overlooked(path: Path, data_root: str | os.PathLike) -> bool:
    """Whether a path is in the folder of dialogues, but where `dialogue_files` does not look."""
    folder = (Path(data_root) / "dialogues").absolute()
    if not path.absolute().is_relative_to(folder):
        return False
    distribution, *rest = path.absolute().relative_to(folder).parts
    kind = rest[0] if len(rest) == 2 else path.stem if len(rest) == 1 else None
    return distribution not in DISTRIBUTIONS or kind not in TYPES


def _utterances(obj: JsonObject, where: Where) -> tuple[Utterance, ...]:
    turns = obj.get("conversations")
    if not isinstance(turns, list):
        raise RecordError(f'{where}: "conversations" must be a list of utterances, not {shown(turns)}')
    return tuple(_utterance(turn, number, where) for number, turn in enumerate(turns))


def _utterance(turn: object, number: int, where: Where) -> Utterance:
    inside = f"conversations[{number}]"
    turn = read_object(turn, where, inside)
    # The published files name the human of a comment in "from", every other speaker in "role".
    speaker = read_text(turn, "from" if "role" not in turn and "from" in turn else "role", where, inside)
    return Utterance(speaker, read_text(turn, "value", where, inside))
