"""Finds duplicate records: the same id, or the same content."""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from data_utils.checks.forms import SAMPLES, Form
from data_utils.checks.problems import REMOVED, Fix, Place, Problem
from data_utils.checks.samples import QUESTION, REFERENCE
from mmrole.base.json_values import Json


class _Seen(NamedTuple):
    place: Place
    whole: bytes


class Copies:
    """The records of a file so far, or of several files whose ids must differ."""

    def __init__(self) -> None:
        self._ids: dict[str, _Seen] = {}
        self._contents: dict[bytes, Place] = {}

    def check(self, record: dict[str, Json], form: Form, place: Place) -> Iterator[Problem]:
        """Whether a record without faults of its shape is a copy of one that came before."""
        whole, content = _digest(record), _digest(_content(record, form))
        unique = form not in (Form.TRAINING, Form.RM_TRAINING)  # the eight reviews of an answer may share an id
        first = self._ids.get(place.id) if place.id is not None else None
        if first is None and place.id is not None:
            self._ids[place.id] = _Seen(place, whole)
        same = self._contents.setdefault(content, place)
        if first and first.whole == whole and first.place.file == place.file:
            yield Problem("duplicate_record", place, f"the same as {first.place}", Fix((), REMOVED))
        elif first and unique:
            yield Problem("duplicate_id", place, f"the id is that of {first.place} as well")
        elif same != place and not _is_failed(record, form):
            yield Problem("duplicate_content", place, f"the same image and words as {same}")


def _content(record: dict[str, Json], form: Form) -> Json:
    """What a record says, without its id and what others have made of it."""
    if form == Form.ANNOTATIONS:
        return record["image"]
    turns = record["conversations"]
    if form in SAMPLES:
        return [record.get("image"), turns[QUESTION[1]][QUESTION[2]], turns[REFERENCE[1]][REFERENCE[2]]]
    images = [record.get("image"), record.get("images")]
    return [images, *([turn.get("role", turn.get("from")), turn["value"]] for turn in turns)]


def _is_failed(record: dict[str, Json], form: Form) -> bool:
    return form == Form.DIALOGUES and len(record["conversations"]) < 2


def _digest(value: Json) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
