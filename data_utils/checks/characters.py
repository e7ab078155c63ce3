"""Checks of the files about characters: `roles.json`, `profiles.json`, detailed profiles and meta information."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from data_utils.checks.forms import Form, form_of_path
from data_utils.checks.names import unknown_role
from data_utils.checks.problems import Fix, Place, Problem
from data_utils.checks.surroundings import Source
from data_utils.checks.texts import check_text
from mmrole.base.errors import shown
from mmrole.base.json_values import Json
from mmrole.data.profiles import DETAILED_FIELDS, META_FIELDS


def check_object(value: dict[str, Json], place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with a file that is one object."""
    if source.form == Form.ROLES:
        yield from _roles(value, place, source)
    elif source.form == Form.PROFILES:
        yield from _entries(value, place, value, blank=False)
        yield from _owners(value, place, source)
    else:
        fields = DETAILED_FIELDS if source.form == Form.DETAILED_PROFILE else META_FIELDS
        yield from _entries(value, place, fields, blank=True)
        yield from _file_name(place, source)


def check_raw_text(text: str, place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with a text about a character that profiles are made from."""
    if not text.strip():
        yield Problem("empty_text", place, "the file is empty")
    yield from _file_name(place, source)


def _roles(value: dict[str, Json], place: Place, source: Source) -> Iterator[Problem]:
    own = source.path.parent.absolute()
    beside = source.around.roles if own in source.around.roles else {}
    others = {role: folder for folder, roles in beside.items() if folder != own for role in roles}
    series_of: dict[str, str] = {}
    for series, roles in value.items():
        if not series.strip():
            yield Problem("empty_text", replace(place, id=series), "a series has no name")
        if not isinstance(roles, list):
            yield Problem("wrong_type", replace(place, id=series), f"not a list of names but {shown(roles)}")
            continue
        if not roles:
            yield Problem("no_records", replace(place, id=series), "the series has no characters")
        for role in roles:
            if not isinstance(role, str):
                yield Problem("wrong_type", replace(place, id=series), f"a name is not a text but {shown(role)}")
            elif not role.strip():
                yield Problem("empty_text", replace(place, id=series), "a name is empty")
            elif role in series_of:
                text = f"named under {shown(series_of[role])} and {shown(series)}"
                yield Problem("role_twice", replace(place, id=role), text)
            elif role in others:
                yield Problem("role_twice", replace(place, id=role), f"named in {others[role]}/roles.json as well")
            else:
                series_of[role] = series


def _entries(value: dict[str, Json], place: Place, keys: Collection[str], *, blank: bool) -> Iterator[Problem]:
    for key in keys:
        entry = replace(place, id=key)
        if key not in value:
            yield Problem("missing_field", place, f"{key} is missing")
        elif not isinstance(value[key], str):
            yield Problem("wrong_type", entry, f"not a text but {shown(value[key])}")
        elif not (blank or value[key].strip()):
            yield Problem("empty_text", entry, "the text is empty")
        else:
            yield from check_text(entry, (key,), value[key])


def _owners(profiles: dict[str, Json], place: Place, source: Source) -> Iterator[Problem]:
    """Profiles of nobody; characters without one, if this file is that of the folder with their `roles.json`."""
    around = source.around
    if not around.series_of:
        return
    names = {role: around.name(role) for role in profiles}
    meant = Counter(names.values())
    renamed = {name if meant[name] == 1 else role: profiles[role] for role, name in names.items()}
    for role, name in names.items():
        entry = replace(place, id=role)
        if name not in around.series_of or (name != role and meant[name] > 1):
            yield unknown_role(entry, role, around)
        elif name != role:
            yield Problem("role_spelling", entry, f"should be {shown(name)}", Fix((), renamed))
    for role in around.roles.get(source.path.parent.absolute(), ()):
        if role not in names.values():
            yield Problem("missing_profile", replace(place, id=role), "roles.json names this character")


def _file_name(place: Place, source: Source) -> Iterator[Problem]:
    around, role = source.around, source.path.stem.replace("_", " ")
    if form_of_path(source.path) == source.form and around.series_of and around.name(role) not in around.series_of:
        yield unknown_role(place, role, around)
