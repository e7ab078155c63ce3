"""Schema of records: the fields, types and turns of each form. A record that fits can be read."""

import re
from collections.abc import Collection, Iterator

from data_utils.checks.forms import SAMPLES, TURN_NAMES, Form
from data_utils.checks.problems import Fix, Place, Problem
from mmrole.base.errors import shown
from mmrole.base.json_values import Json

INFO = ("role_info", "place_info", "scene_info")
"""What a dialogue or an annotation may tell about its image."""

_NUMBER = re.compile(r"\s*\d{1,9}(\.\d{1,9})?\s*")


def check_shape(record: Json, form: Form, place: Place) -> Iterator[Problem]:
    """The faults in the form of one record of a list.

    Args:
        record: any JSON value.
        form: what the record should be.
        place: where it is.
    """
    if not isinstance(record, dict):
        yield Problem("wrong_type", place, f"the record is not an object but {shown(record)}")
        return
    if form == Form.ANNOTATIONS:
        yield from _texts(record, place, needed=["image"], optional=INFO)
    elif form == Form.DIALOGUES:
        yield from _texts(record, place, needed=["id", "image"], optional=INFO)
        yield from _utterances(record, place)
    elif form in SAMPLES:
        image = [] if record.get("image") is None else ["image"]
        yield from _texts(record, place, needed=["id", *image, "role", "script", "other_role"], blank=["system"])
        yield from _turns(record, place, form)
        if form == Form.REVIEWS:
            yield from _reviews(record, place)
    else:
        id_ = [] if isinstance(record.get("id"), int) and not isinstance(record["id"], bool) else ["id"]
        fields = (*id_, "system", "type", "role", "script", "other_role")
        yield from _texts(record, place, optional=fields)
        yield from _turns(record, place, form)


def _texts(
    obj: dict[str, Json],
    place: Place,
    inside: str = "",
    *,
    needed: Collection[str] = (),
    blank: Collection[str] = (),
    optional: Collection[str] = (),
) -> Iterator[Problem]:
    """Faults of fields that are texts: `needed` must say something, `blank` must be there, `optional` may be null."""
    for key in (*needed, *blank, *optional):
        name = f"{inside}.{key}" if inside else key
        value = obj.get(key)
        if key in optional and value is None:
            continue
        if key not in obj:
            yield Problem("missing_field", place, f"{name} is missing")
        elif not isinstance(value, str):
            yield Problem("wrong_type", place, f"{name} is not a text but {shown(value)}")
        elif key in needed and not value.strip():
            yield Problem("empty_text", place, f"{name} is {'blank' if value else 'empty'}")


def _list(record: dict[str, Json], place: Place) -> Iterator[Problem]:
    if "conversations" not in record:
        yield Problem("missing_field", place, "conversations is missing")
    elif not isinstance(record["conversations"], list):
        yield Problem("wrong_type", place, f"conversations is not a list but {shown(record['conversations'])}")
    else:
        for number, turn in enumerate(record["conversations"]):
            if not isinstance(turn, dict):
                yield Problem("wrong_type", place, f"conversations[{number}] is not an object but {shown(turn)}")


def _utterances(record: dict[str, Json], place: Place) -> Iterator[Problem]:
    faults = list(_list(record, place))
    yield from faults
    for number, turn in enumerate(record["conversations"] if not faults else ()):
        speaker = "from" if "role" not in turn and "from" in turn else "role"
        yield from _texts(turn, place, f"conversations[{number}]", needed=[speaker, "value"])


def _turns(record: dict[str, Json], place: Place, form: Form) -> Iterator[Problem]:
    faults = list(_list(record, place))
    yield from faults
    if faults:
        return
    turns = record["conversations"]
    renamed = [_renamed(turn) for turn in turns]
    if None not in renamed and renamed != turns:
        found = ", ".join(dict.fromkeys(shown(turn.get("from", turn.get("role"))) for turn in turns))
        keys = "role and content" if any("content" in turn for turn in turns) else "from and value"
        text = f"the turns are {keys} of {found}; this data set has from and value of 'user', 'assistant'"
        yield Problem("turn_names", place, text, Fix(("conversations",), renamed))
        return
    yield from _order(turns, place, form)
    for number, turn in enumerate(turns):
        answered = form in (Form.ANSWERS, Form.REVIEWS) and number == 1
        blank = ["answer"] if answered else []
        optional = ["answer_error"] if answered else []
        inside = f"conversations[{number}]"
        yield from _texts(turn, place, inside, needed=["from", "value"], blank=blank, optional=optional)
        if answered and all(isinstance(turn.get(key), str) and turn[key].strip() for key in ("answer", "answer_error")):
            text = f"{inside} has an answer, and as answer_error {shown(turn['answer_error'])}"
            yield Problem("answer_and_error", place, text)


def _order(turns: list[dict[str, Json]], place: Place, form: Form) -> Iterator[Problem]:
    if form in SAMPLES and len(turns) != 2:
        yield Problem("turn_order", place, f"{len(turns)} turns instead of one of the user and one of the assistant")
        return
    if not turns or len(turns) % 2:
        yield Problem("turn_order", place, f"{len(turns)} turns; the user and the assistant must have the same number")
        return
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        speaker = turn.get("from")
        if isinstance(speaker, str) and speaker.strip() and speaker != expected:
            yield Problem("turn_order", place, f"conversations[{number}] is from {shown(speaker)}, not {expected!r}")
            return


def _renamed(turn: dict[str, Json]) -> dict[str, Json] | None:
    """The turn with this data set's names, or None if it is not clear what is what."""
    keys = ("role", "content") if "role" in turn and "content" in turn else ("from", "value")
    speaker = turn.get(keys[0])
    if not isinstance(speaker, str) or speaker.casefold() not in TURN_NAMES or not isinstance(turn.get(keys[1]), str):
        return None
    values = {"from": TURN_NAMES[speaker.casefold()], "value": turn[keys[1]]}
    return values | {key: value for key, value in turn.items() if key not in (*keys, *values)}


def _reviews(record: dict[str, Json], place: Place) -> Iterator[Problem]:
    reviews = record.get("rm_review")
    if "rm_review" not in record:
        answer = _answer(record)
        if not isinstance(answer, str) or answer.strip():
            yield Problem("missing_field", place, "rm_review is missing; only an empty answer has none")
        return
    if not isinstance(reviews, dict):
        yield Problem("wrong_type", place, f"rm_review is not an object but {shown(reviews)}")
        return
    for metric, review in reviews.items():
        name = f"rm_review[{shown(metric)}]"
        if not isinstance(review, dict):
            yield Problem("wrong_type", place, f"{name} is not an object but {shown(review)}")
            continue
        yield from _texts(review, place, name, blank=["review"], optional=["reason"])
        yield from _score(review, place, name, ("rm_review", metric, "score"))


def _score(review: dict[str, Json], place: Place, name: str, path: tuple[str, ...]) -> Iterator[Problem]:
    score = review.get("score")
    if "score" not in review:
        yield Problem("missing_field", place, f"{name}.score is missing")
        return
    if score is None or score == {}:
        return
    numbers = _numbers(score)
    if numbers is None:
        yield Problem("wrong_type", place, f"{name}.score is not a pair of numbers but {shown(score)}")
    elif any(isinstance(number, str) for number in score):
        yield Problem("score_form", place, f"{name}.score is written as text: {shown(score)}", Fix(path, numbers))


def _numbers(score: Json) -> list[float] | None:
    if not isinstance(score, list) or len(score) != 2:
        return None
    texts = all(type(number) in (int, float) or _is_number(number) for number in score)
    return [float(number) if isinstance(number, str) else number for number in score] if texts else None


def _is_number(value: Json) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _answer(record: dict[str, Json]) -> Json:
    turns = record.get("conversations")
    turn = turns[1] if isinstance(turns, list) and len(turns) == 2 else None
    return turn.get("answer") if isinstance(turn, dict) else None
