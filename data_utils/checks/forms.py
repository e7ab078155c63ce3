"""Recognises the form of a file by its place in the layout and its content; finds the files of a folder to check."""

import enum
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mmrole.base.errors import UserError
from mmrole.base.json_values import Json
from mmrole.base.paths import files_below
from mmrole.data.dialogues import DISTRIBUTIONS
from mmrole.data.pictures import begins_with_picture
from mmrole.data.profiles import DETAILED_FIELDS, META_FIELDS
from mmrole.data.prompts import is_review_prompt
from mmrole.scoring.judges import judge_folder

TURN_NAMES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""The speakers of a training conversation as this data set and others name them, and as this one does."""


class Form(enum.StrEnum):
    """What a file holds. The value is its name for `--form` and in reports."""

    DIALOGUES = "dialogues"
    ROLES = "roles"
    PROFILES = "profiles"
    DETAILED_PROFILE = "detailed_profile"
    META_INFO = "meta_info"
    RAW_INFO = "raw_info"
    ANNOTATIONS = "annotations"
    TEST = "test_samples"
    ANSWERS = "answers"
    REVIEWS = "reviews"
    RESULTS = "results"
    TRAINING = "training"
    RM_TRAINING = "rm_training"


SAMPLES = (Form.TEST, Form.ANSWERS, Form.REVIEWS)
"""The forms of a test sample: each is the one before it with something added."""

OBJECTS = (Form.ROLES, Form.PROFILES, Form.DETAILED_PROFILE, Form.META_INFO)
"""The forms of one JSON object; the others of JSON are lists of records."""

# A file that its folder and its content tell apart within a family has the form of its folder, and what that lacks.
_FAMILIES = (OBJECTS, (*SAMPLES, Form.TRAINING, Form.RM_TRAINING))
_FOLDERS = {
    "detailed_profiles": Form.DETAILED_PROFILE,
    "meta_info_hypo": Form.META_INFO,
    "raw_info_en": Form.RAW_INFO,
    "raw_info_zh": Form.RAW_INFO,
    "RM_data": Form.RM_TRAINING,
    "data/train": Form.TRAINING,
    "data/test": Form.TEST,
    **{f"dialogues/{distribution}": Form.DIALOGUES for distribution in DISTRIBUTIONS},
    **{f"{split}-test_{form}": form for split in ("in", "out") for form in (Form.ANSWERS, Form.REVIEWS, Form.RESULTS)},
}
_NAMES = {"roles.json": Form.ROLES, "profiles.json": Form.PROFILES, "annotations.json": Form.ANNOTATIONS}
_LAYOUT = {
    "data": r"(.*/)?train/[^/]+\.json|(.*/)?test/.+\.json",
    "dialogues": r".+\.json",
    "profiles": r".+\.json|(.*/)?raw_info_[^/]*/[^/]+\.txt",
    "RM_data": r".+\.json",
    "eval": r"(in|out)-test_(answers|reviews(@[^/]+)?)/.+\.json|(in|out)-test_results(@[^/]+)?/.+\.csv",
}
"""What is checked below each folder of the layout."""
_SHORTEST_PROFILE = 20  # characters; what is shorter is no description but a setting
_NOTES = {"build_info.json", "download.json"}  # what the other commands of this package write about themselves


class Recognised(NamedTuple):
    """The form of a file."""

    form: Form | None
    """None if it has none of the forms."""
    expected: Form | None = None
    """The form that its folder is for, if that is quite another."""


def find_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that can be checked, sorted.

    In a folder with parts of the published layout these are the files of the layout. In any other they are all its
    JSON files, those in subfolders included, linked ones as well, without hidden ones.

    Raises:
        UserError: there is nothing to check.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist; give files or folders of data")
    if not path.is_dir():
        return [path]
    files = [file for folder, pattern in _LAYOUT.items() for file in _matching(path / folder, pattern)]
    if os.path.lexists(annotations := path / "images/annotations.json"):
        files.append(annotations)
    files = sorted(files) or _matching(path, r".+\.json")
    if not files:
        raise UserError(f"{path} has no JSON file; give a folder with files of the published layout")
    return files


def recognise(path: Path, value: Json, known: Form | None = None) -> Recognised:
    """The form of a JSON file.

    Args:
        path: its place counts.
        value: its content.
        known: what its content had the form of before it was repaired: what is left of it may look like another.
    """
    expected, found = form_of_path(path), known or _form_of_value(value)
    if found is None:
        fits = isinstance(value, dict if expected in OBJECTS else list)
        return Recognised(expected if fits else None)
    if expected is None or expected == found:
        return Recognised(found)
    if any(expected in family and found in family for family in _FAMILIES):
        return Recognised(expected)
    return Recognised(found, expected)


def form_of_path(path: Path) -> Form | None:
    """The form that a file's name and folders ask for in the published layout; None if they say nothing."""
    folders = [_without_judge(folder) for folder in path.absolute().parent.parts[-3:]]  # no published file lies deeper
    for number in range(len(folders), 0, -1):
        form = _FOLDERS.get(folders[number - 1]) or _FOLDERS.get("/".join(folders[max(number - 2, 0) : number]))
        if form:
            return form
    return Form.RESULTS if path.suffix == ".csv" else _NAMES.get(path.name)


def _without_judge(folder: str) -> str:
    """`in-test_reviews@JUDGE` is a folder like `in-test_reviews`."""
    found = judge_folder(folder)
    return folder if found is None else found.name


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose path in it matches, but for notes."""
    expression = re.compile(pattern, re.DOTALL)
    files = [file for file in files_below(folder) if file.name not in _NOTES]
    return [file for file in files if expression.fullmatch(file.relative_to(folder).as_posix())]


def _form_of_value(value: Json) -> Form | None:
    if isinstance(value, dict):
        return _form_of_object(value)
    if not isinstance(value, list):
        return None
    votes = Counter(_form_of_record(record) for record in value)
    del votes[None]
    if not votes:
        return None
    form = max(votes, key=votes.__getitem__)
    # The last of the forms that any record has: in a file of answers, a sample without one is what is wrong.
    return max((other for other in SAMPLES if votes[other]), key=SAMPLES.index) if form in SAMPLES else form


def _form_of_object(value: dict[str, Json]) -> Form | None:
    if sum(isinstance(entry, list) for entry in value.values()) * 2 > len(value):
        return Form.ROLES
    texts = [entry for entry in value.values() if isinstance(entry, str)]
    if len(texts) * 2 <= len(value):
        return None
    fields = {Form.DETAILED_PROFILE: DETAILED_FIELDS, Form.META_INFO: META_FIELDS}
    found = {form: sum(name in value for name in names) for form, names in fields.items()}
    likely = max(found, key=found.__getitem__)
    if found[likely] >= 3:
        return likely
    return Form.PROFILES if sum(len(text) >= _SHORTEST_PROFILE for text in texts) * 2 > len(texts) else None


def _form_of_record(record: Json) -> Form | None:
    if not isinstance(record, dict):
        return None
    if "rm_review" in record:
        return Form.REVIEWS
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return Form.ANNOTATIONS if "image" in record and "scene_info" in record else None
    turns = [turn for turn in turns if isinstance(turn, dict)]
    if any("answer" in turn for turn in turns):
        return Form.ANSWERS
    if len(turns) < 2 or any("role" in turn and "content" not in turn for turn in turns):
        return Form.DIALOGUES
    words = turns[0].get("value", turns[0].get("content"))
    if isinstance(words, str) and is_review_prompt(words):
        return Form.RM_TRAINING
    if (isinstance(words, str) and begins_with_picture(words)) or "type" in record or "script" not in record:
        return Form.TRAINING
    return Form.TEST
