"""Loads a file to check, whatever is in it."""

from pathlib import Path
from typing import NamedTuple

from data_utils.checks.forms import Form, form_of_path, recognise
from data_utils.checks.problems import Fix, Place, Problem
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, read_json_lines, read_text_file
from mmrole.base.json_values import Json

_DEEPEST = 50  # levels of nesting; published files have six

_TEXT_FORMS = (Form.RAW_INFO, Form.RESULTS)


class Loaded(NamedTuple):
    """The content of a file, as far as it can be used."""

    form: Form | None
    """None if the file cannot be read, or has none of the forms."""
    value: Json
    """The JSON value, or the text of a table or a text file."""
    problems: list[Problem]


def load_file(path: Path, home: Path, form: Form | None, place: Place, known: Form | None = None) -> Loaded:
    """Reads a file.

    Args:
        path: the file.
        home: where it belongs: its place in the layout counts.
        form: what it is to be checked as; None to recognise it.
        place: what problems name.
        known: of a repaired copy, what the file was recognised as.
    """
    wanted = form or form_of_path(home)
    if wanted and wanted in _TEXT_FORMS:
        return _load_text(path, wanted, place)
    problems = []
    try:
        value = read_json(path, object)
    except UserError as error:
        value = read_json_lines(path)
        if value is None:
            return Loaded(None, None, [Problem("unreadable", place, str(error))])
        problems.append(Problem("json_lines", place, f"{len(value)} lines of one object each", Fix((), value)))
    if _is_deeper(value, _DEEPEST):
        return Loaded(None, None, [Problem("unreadable", place, f"nested deeper than {_DEEPEST} levels")])
    recognised = recognise(home, value, known) if form is None else None
    if recognised is not None:
        form = recognised.form
    if form is None:
        return Loaded(None, None, [Problem("unknown_form", place, f"none of the forms {', '.join(Form)}")])
    if recognised and recognised.expected:
        text = f"the file holds {form}, its folder is for {recognised.expected}"
        problems.append(Problem("misplaced", place, text))
    return Loaded(form, value, problems)


def _load_text(path: Path, form: Form, place: Place) -> Loaded:
    try:
        return Loaded(form, read_text_file(path), [])
    except UserError as error:
        return Loaded(None, None, [Problem("unreadable", place, str(error))])


def _is_deeper(value: Json, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [item for part in level if isinstance(part, (dict, list)) for item in _items(part)]
    return any(isinstance(part, (dict, list)) for part in level)


def _items(part: Json) -> list[Json]:
    return [item for item in (part.values() if isinstance(part, dict) else part) if isinstance(item, (dict, list))]
