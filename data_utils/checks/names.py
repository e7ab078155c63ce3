"""Checks of characters: known, well spelled, of the series that they are said to be of, with partners of their own."""

from collections.abc import Iterator

from data_utils.checks.problems import Fix, Place, Problem
from data_utils.checks.surroundings import Surroundings, is_same_name, partner_name
from mmrole.base.errors import shown
from mmrole.data.prompts import HUMAN_PARTNER


def check_names(
    place: Place, role: str | None, script: str | None, other_role: str | None, around: Surroundings
) -> Iterator[Problem]:
    """What is wrong with a sample's `role`, `script` and `other_role` (None: it has no such field)."""
    names = {
        "role": role and around.name(role),
        "script": script and around.series_name(script),
        "other_role": other_role and partner_name(other_role, around),
    }
    for (key, name), given in zip(names.items(), (role, script, other_role), strict=True):
        if name != given:
            yield Problem("role_spelling", place, f"{key} {shown(given)} should be {shown(name)}", Fix((key,), name))
    role, script, partner = names.values()
    if role and partner and is_same_name(role, partner):
        yield Problem("wrong_partner", place, f"{shown(role)} talks with itself")
    if not around.series_of:
        return
    known = [name for name in (role, partner) if name and name != HUMAN_PARTNER]
    for name in dict.fromkeys(known):
        if name not in around.series_of:
            yield unknown_role(place, name, around)
    if script and script not in around.series_of.values():
        yield Problem("unknown_series", place, f"script {shown(script)} is not in {around.roles_files}")
    elif script and role and role in around.series_of and around.series_of[role] != script:
        yield Problem(
            "wrong_series", place, f"{shown(role)} is of {shown(around.series_of[role])}, not {shown(script)}"
        )
    elif role and partner in known and role != partner:
        yield from check_partner(place, role, partner, around)


def check_partner(place: Place, role: str, partner: str, around: Surroundings) -> Iterator[Problem]:
    """Whether two characters can talk with each other: they are two, and of one series."""
    if is_same_name(role, partner):
        yield Problem("wrong_partner", place, f"{shown(role)} talks with itself")
        return
    series, other = around.series_of.get(role), around.series_of.get(partner)
    if series and other and series != other:
        text = f"{shown(role)} is of {shown(series)}, the partner {shown(partner)} of {shown(other)}"
        yield Problem("wrong_partner", place, text)


def unknown_role(place: Place, name: str, around: Surroundings) -> Problem:
    """The problem of a name that nobody has."""
    return Problem("unknown_role", place, f"{shown(name)} is not in {around.roles_files}")
