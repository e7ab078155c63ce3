"""Context of a check besides the record: the characters and test samples around a file, and the tokenizer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from data_utils.checks.forms import Form
from mmrole.base.errors import UserError
from mmrole.base.files import read_json
from mmrole.base.json_values import Json
from mmrole.data.dialogues import DISTRIBUTIONS, SOURCES, TYPES
from mmrole.data.pictures import Picture
from mmrole.data.profiles import file_name, profile_folder
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER

_HUMAN_NAMES = {"human", "user", "a human", "a user", "the human", "curious human", "the curious human", HUMAN_PARTNER}


class Lengths(NamedTuple):
    """How long a sample may be."""

    tokens: Callable[[Sequence[tuple[str, Sequence[str | Picture]]], Path | None], int]
    """The number of tokens of a chat of (speaker, texts and pictures) about images in a folder, without those of images
    that are not there. Raises UserError where the model does not take such a chat."""
    most: int
    by_size: bool = False
    """Whether the tokens of an image follow from its size."""
    training_system: str | None = None
    """The system message of all training samples; None where each has its own."""


@dataclass(frozen=True)
class Surroundings:
    """What a folder in the published layout says about the characters and the test set."""

    root: Path | None
    """The folder of `profiles/`, `dialogues/` and `data/`; None if there is none."""
    roles: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)
    """The series of every character, by the folder of the `roles.json` that names it."""

    @cached_property
    def series_of(self) -> Mapping[str, str]:
        """The series of every character. Empty if there is no `roles.json`."""
        return {role: series for roles in self.roles.values() for role, series in roles.items()}

    @cached_property
    def folders(self) -> Mapping[str, str]:
        """The image folders of the series by their name in lower case."""
        return {file_name(series).casefold(): file_name(series) for series in self.series_of.values()}

    @cached_property
    def _spelling(self) -> Mapping[str, str | None]:
        spelling: dict[str, str | None] = {}
        for role in self.series_of:
            spelling[_plain(role)] = None if _plain(role) in spelling else role
        return spelling

    def name(self, role: str) -> str:
        """The character that a name in any spelling is meant for; the name itself if that is nobody or not clear."""
        if role in self.series_of:
            return role
        return self._spelling.get(_plain(role)) or role

    def series_name(self, series: str) -> str:
        """The series that a name in any spelling is meant for; the name itself if there is none."""
        return self._series.get(_plain(series), series)

    @property
    def roles_files(self) -> str:
        """What messages call the files that name the characters."""
        return f"{profile_folder(self.root or '', '*')}/roles.json"

    @cached_property
    def _series(self) -> Mapping[str, str]:
        return {_plain(series): series for series in self.series_of.values()}

    @cached_property
    def test_files(self) -> Mapping[Path, Mapping[str, Json]]:
        """The test samples by id, by file. What cannot be read is left out: it is reported with its file."""
        if self.root is None:
            return {}
        files = sorted((self.root / "data/test").glob("[!.]*/[!.]*_test.json"))
        return {file: _by_id(file) for file in files}

    @cached_property
    def test_samples(self) -> Mapping[str, Json]:
        """All test samples by id."""
        return {id_: sample for samples in self.test_files.values() for id_, sample in samples.items()}

    @cached_property
    def test_dialogues(self) -> frozenset[str]:
        """The ids of the dialogues that test samples were cut from."""
        return frozenset(id_.rpartition("_")[0] for id_ in self.test_samples) - {""}


@dataclass(frozen=True)
class Source:
    """A file to check, as far as its path and the folder around it tell."""

    path: Path
    form: Form
    around: Surroundings
    lengths: Lengths | None = None
    image_dir: Path | None = None
    """The image folder, whether it is there or not."""

    @property
    def type(self) -> str | None:
        """The type of the dialogues in the file: one of `dialogues.TYPES`; None if its path does not say."""
        return next((name for name in (self.path.stem, self.path.parent.name) if name in TYPES), None)

    @property
    def owner(self) -> str | None:
        """The known character that a file of dialogues is named after, `<Owner>_{COCO,script}.json`."""
        name, _, source = self.path.stem.rpartition("_")
        owner = self.around.name(name.replace("_", " "))
        return owner if source in SOURCES and owner in self.around.series_of else None


def speaker_name(speaker: str, around: Surroundings) -> str:
    """The speaker of a dialogue in the spelling of `roles.json`; `HUMAN_SPEAKER` for a human partner."""
    return HUMAN_SPEAKER if _plain(speaker) in _HUMAN_NAMES else around.name(speaker)


def partner_name(partner: str, around: Surroundings) -> str:
    """A sample's `other_role` in the spelling of `roles.json`; `HUMAN_PARTNER` for a human partner."""
    return HUMAN_PARTNER if _plain(partner) in _HUMAN_NAMES else around.name(partner)


def is_same_name(one: str, other: str) -> bool:
    """Whether two names differ in their spelling at most."""
    return _plain(one) == _plain(other)


def find_root(path: Path) -> Path | None:
    """The nearest folder with `profiles/` of the layout in it: the path itself, one above it, or the current one."""
    path = path.absolute()
    for folder in (path, *path.parents, Path.cwd()):
        if any((folder / "profiles" / distribution).is_dir() for distribution in DISTRIBUTIONS):
            return folder
    return None


def read_surroundings(root: Path | None) -> Surroundings:
    """Reads the characters of a folder. A damaged `roles.json` counts for what can be read of it."""
    roles: dict[Path, dict[str, str]] = {}
    if root is None:
        return Surroundings(None, roles)
    for distribution in DISTRIBUTIONS:
        folder = profile_folder(root.absolute(), distribution)
        lists = _readable(folder / "roles.json", dict).items()
        pairs = [(role, series) for series, names in lists if isinstance(names, list) for role in names]
        roles[folder] = {role: series for role, series in pairs if isinstance(role, str)}
    return Surroundings(root, roles)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.replace("’", "'")).strip().casefold()


def _readable(path: Path, top: type) -> Json:
    try:
        return read_json(path, top)
    except UserError:
        return top()


def _by_id(path: Path) -> Mapping[str, Json]:
    samples = [sample for sample in _readable(path, list) if isinstance(sample, dict)]
    return {sample["id"]: sample for sample in samples if isinstance(sample.get("id"), str)}
