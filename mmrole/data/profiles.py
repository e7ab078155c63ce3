"""Characters: their series, their profiles, and the categories of the paper."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mmrole.base.errors import Problems, RecordError, UserError, Where, listed, shown
from mmrole.base.fields import read_text
from mmrole.base.files import read_json
from mmrole.data.dialogues import DISTRIBUTIONS
from mmrole.data.prompts import HYPOTHETICAL_SERIES

CATEGORIES = ("fictional", "historical and public", "hypothetical")
"""The paper's kinds of character."""

DETAILED_FIELDS = ("introduction", "personality", "experience", "relationship", "catchphrase")
"""What a file of `detailed_profiles` tells about a character."""

META_FIELDS = ("name", "gender", "age", "origin", "personality", "experience")
"""What a file of `meta_info_hypo` tells about a hypothetical character."""

_ENGLISH_PERIODS = ("age", "century", "dynasty", "era", "period", "times")
_CHINESE_PERIODS = ("代", "朝", "世纪", "时期")


class Character(NamedTuple):
    """A character of the data set."""

    name: str
    series: str
    distribution: str
    """One of `DISTRIBUTIONS`: the folder whose `roles.json` names the character."""
    profile: str
    """The description that goes into prompts, as in `profiles.json`."""


def category(series: str, overrides: Mapping[str, str] = MappingProxyType({})) -> str:
    """The paper's category of a series' characters, one of `CATEGORIES`, told from the name of the series.

    The characters of `Hypothetical Characters` are hypothetical. A series named after a span of time holds historical
    and public figures: `the … period` (or times, age, era, century, dynasty), `…代` (or 朝, 世纪, 时期). Every other
    series is a work, and its characters are fictional. This gives the 41 fictional, 11 historical and public and 20
    hypothetical characters that the paper counts in distribution.

    Args:
        series: the name of the series, as in `roles.json`.
        overrides: categories by series, for names that tell it otherwise.
    """
    if series in overrides:
        return overrides[series]
    if series == HYPOTHETICAL_SERIES:
        return "hypothetical"
    words = series.lower().split()
    english = words[:1] == ["the"] and words[-1] in _ENGLISH_PERIODS
    return "historical and public" if english or series.endswith(_CHINESE_PERIODS) else "fictional"


def profile_folder(data_root: str | os.PathLike, distribution: str) -> Path:
    """The folder of a distribution's `roles.json`, `profiles.json`, `detailed_profiles` and `meta_info_hypo`."""
    return Path(data_root) / "profiles" / distribution


def file_name(name: str) -> str:
    """A character's or series' name as it is written in the names of files, folders and ids: `Iron_Man`."""
    return name.replace(" ", "_")


def read_roles(path: str | os.PathLike) -> dict[str, str]:
    """Reads `roles.json`: the series of every character, in the order of the file.

    Raises:
        UserError: the file is not an object of lists of names, or names a character twice.
    """
    series_of: dict[str, str] = {}
    problems = Problems()
    for series, roles in read_json(path, dict).items():
        if not isinstance(roles, list) or not all(isinstance(role, str) and role.strip() for role in roles):
            problems.add(f"{path}: {shown(series)} must be a list of names, not {shown(roles)}")
            continue
        for role in roles:
            if role in series_of:
                problems.add(f"{path}: {shown(role)} is named under {shown(series_of[role])} and {shown(series)}")
            series_of.setdefault(role, series)
    problems.raise_if_any(f"{path} is faulty", 'write {"series": ["name", …], …}, every name once')
    return series_of


def read_profiles(path: str | os.PathLike) -> dict[str, str]:
    """Reads `profiles.json`: the description of every character.

    Raises:
        UserError: the file is not an object of non-empty texts.
    """
    profiles = read_json(path, dict)
    problems = Problems()
    for role in profiles:
        try:
            read_text(profiles, role, Where(str(path), id=role))
        except RecordError:
            problems.add(f"{path}: the profile of {shown(role)} must be a non-empty text")
    problems.raise_if_any(f"{path} has faulty profiles", 'write {"name": "description", …}')
    return profiles


def read_characters(data_root: str | os.PathLike) -> dict[str, Character]:
    """The characters of both distributions by name, in the order of the files, those in distribution first.

    Raises:
        UserError: there is no `roles.json`, a file is faulty, or a character has no profile or is in both
            distributions.
    """
    characters: dict[str, Character] = {}
    problems = Problems()
    folders = [(name, profile_folder(data_root, name)) for name in DISTRIBUTIONS]
    folders = [(name, folder) for name, folder in folders if (folder / "roles.json").exists()]
    if not folders:
        raise UserError(
            f"{data_root} has no profiles/in-distribution/roles.json; give the folder of dialogues/ and profiles/"
        )
    for distribution, folder in folders:
        profiles = read_profiles(folder / "profiles.json")
        for role, series in read_roles(folder / "roles.json").items():
            if role not in profiles:
                problems.add(f"{folder / 'profiles.json'} has no profile of {shown(role)}, whom roles.json names")
            elif role in characters:
                problems.add(f"{shown(role)} is in the roles.json of both distributions, which must not share anyone")
            else:
                characters[role] = Character(role, series, distribution, profiles[role])
    problems.raise_if_any("the characters are not complete", f"correct the files in {Path(data_root) / 'profiles'}")
    return characters


def find_character(name: str, characters: Mapping[str, Character]) -> Character:
    """The character of a name, in any case and with `_` for blanks.

    Raises:
        UserError: there is none; the message names those that are meant perhaps.
    """
    by_key = {_key(known): character for known, character in characters.items()}
    if _key(name) in by_key:
        return by_key[_key(name)]
    near = [by_key[key].name for key in difflib.get_close_matches(_key(name), by_key, n=3)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed(list(characters), 8)}"
    raise UserError(f"role {name}: not in profiles.json; {hint}")


def _key(name: str) -> str:
    return name.replace("_", " ").casefold()
