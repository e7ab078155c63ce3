"""Checks of dialogues and annotations."""

import re
from collections.abc import Iterator

from data_utils.checks.names import check_partner, unknown_role
from data_utils.checks.problems import REMOVED, Fix, Place, Problem
from data_utils.checks.shape import INFO
from data_utils.checks.surroundings import Source, speaker_name
from data_utils.checks.texts import check_ends, check_reply, check_text
from mmrole.base.errors import shown
from mmrole.data.dialogues import ID_NAMES, SOURCES, Dialogue, Still
from mmrole.data.profiles import file_name
from mmrole.data.prompts import HUMAN_SPEAKER


def check_dialogue(record: Dialogue, place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with a dialogue, image and copies apart."""
    if record.failed:
        found = "no utterance" if not record.utterances else "only a question"
        yield Problem("failed_generation", place, f"there is {found}", Fix((), REMOVED))
        return
    names = [speaker_name(utterance.speaker, source.around) for utterance in record.utterances]
    yield from _spelling(record, names, place)
    yield from _speakers(names, place, source)
    yield from _texts(record, names, place, source)


def check_still(record: Still, place: Place, source: Source) -> Iterator[Problem]:
    """What is wrong with an annotation, its image apart."""
    for key in INFO:
        yield from check_text(place, (key,), getattr(record, key))


def _spelling(record: Dialogue, names: list[str], place: Place) -> Iterator[Problem]:
    wrong = {utterance.speaker: name for utterance, name in zip(record.utterances, names, strict=True)}
    wrong = {speaker: name for speaker, name in wrong.items() if speaker != name}
    if wrong:
        text = ", ".join(f"{shown(speaker)} should be {shown(name)}" for speaker, name in wrong.items())
        turns = [
            {key: wrong.get(value, value) if key in ("role", "from") else value for key, value in turn.items()}
            for turn in record.json["conversations"]
        ]
        yield Problem("role_spelling", place, text, Fix(("conversations",), turns))


def _speakers(names: list[str], place: Place, source: Source) -> Iterator[Problem]:
    around, speakers = source.around, list(dict.fromkeys(names))
    repeated = next((number for number in range(1, len(names)) if names[number] == names[number - 1]), None)
    if repeated is not None:
        yield Problem("turn_order", place, f"{shown(names[repeated])} speaks twice at conversations[{repeated}]")
        return
    if len(speakers) != 2:
        yield Problem("speaker_count", place, f"the speakers are {', '.join(map(shown, speakers))}")
        return
    characters = [name for name in speakers if name != HUMAN_SPEAKER]
    unknown = [name for name in characters if around.series_of and name not in around.series_of]
    yield from (unknown_role(place, name, around) for name in unknown)
    if len(characters) == 2:
        yield from check_partner(place, characters[0], characters[1], around)
    yield from _type(names, characters, place, source)
    if not unknown:
        yield from _owner(characters[-1], place, source)


def _type(names: list[str], characters: list[str], place: Place, source: Source) -> Iterator[Problem]:
    alone = len(characters) == 1
    wanted = {
        "comment": (alone and len(names) == 2 and names[0] == HUMAN_SPEAKER, "a question of a human and a comment"),
        "human-role": (alone, "a talk of a human and a character"),
        "inter-role": (not alone, "a talk of two characters"),
    }
    if source.type and not wanted[source.type][0]:
        found = f"{len(names)} utterances of {' and '.join(map(shown, dict.fromkeys(names)))}"
        yield Problem("dialogue_type", place, f"{found} are not {wanted[source.type][1]} ({source.type})")


def _owner(owner: str, place: Place, source: Source) -> Iterator[Problem]:
    if source.owner and owner != source.owner:
        yield Problem("wrong_owner", place, f"the dialogue is {shown(owner)}'s (the second character to speak)")
    types = [ID_NAMES[source.type]] if source.type else ID_NAMES.values()
    head = re.escape(file_name(owner))
    if not re.fullmatch(f"{head}_({'|'.join(types)})_({'|'.join(SOURCES)})(_[0-9]+)?", place.id or ""):
        yield Problem("id_form", place, f"the id is not {file_name(owner)}_{'|'.join(types)}_COCO|script_<n>")


def _texts(record: Dialogue, names: list[str], place: Place, source: Source) -> Iterator[Problem]:
    for key in INFO:
        yield from check_text(place, (key,), getattr(record, key))
    for number, (name, utterance) in enumerate(zip(names, record.utterances, strict=True)):
        path = ("conversations", number, "value")
        yield from check_text(place, path, utterance.value)
        yield from check_ends(place, path, utterance.value)
        if name != HUMAN_SPEAKER:
            yield from check_reply(place, path, utterance.value, source.around.series_of.get(name), names)
