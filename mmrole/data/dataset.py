"""A data set of dialogues and characters in the published layout, and the samples that are cut from it.

The rules are those of MMRole-Data: every utterance of a character is the answer of one sample, whose prompt holds the
profiles, what is known about the image, and everything that was said before.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mmrole.base.errors import Problems, UserError, Where, shown
from mmrole.base.files import read_records
from mmrole.base.json_values import JsonObject
from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, Dialogue, DialogueFile, dialogue_files
from mmrole.data.images import path_fault
from mmrole.data.profiles import Character, read_characters
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER, ROLE_PLAY_SYSTEM, picture_markup, role_play_prompt

IMAGE_FOLDER = "images"
"""Where images lie relative to the repository root, as the markup of training files names them."""


class PlacedDialogue(NamedTuple):
    """A dialogue and the file that it is from, which tells its type and distribution."""

    dialogue: Dialogue
    file: DialogueFile


class Dataset(NamedTuple):
    """Characters by name, and all dialogues in the order of characters, failed generations included."""

    characters: dict[str, Character]
    dialogues: list[PlacedDialogue]

    def usable(self, distribution: str, kind: str) -> Iterator[Dialogue]:
        """The dialogues of a distribution and a type whose generation did not fail."""
        for dialogue, file in self.dialogues:
            if (file.distribution, file.type) == (distribution, kind) and not dialogue.failed:
                yield dialogue


def read_dataset(data_root: str | os.PathLike) -> Dataset:
    """Reads all characters and dialogues below a folder, and checks that samples can be cut from them.

    Args:
        data_root: the folder that holds `dialogues/` and `profiles/`. Image files are not needed.

    Raises:
        UserError: there are no dialogues, a file cannot be read, or records are faulty (the first ones are named).
    """
    characters = read_characters(data_root)
    files = dialogue_files(data_root)
    if not files:
        raise UserError(
            f"{data_root} has no dialogues; put them into dialogues/in-distribution/<type>/<Role>_{{COCO,script}}.json"
        )
    rank: dict[str | None, int] = {name: place for place, name in enumerate(characters)}
    files.sort(key=lambda file: rank.get(file.owner, len(rank)))  # stable; the published test files are in this order
    problems = Problems()
    placed = [
        PlacedDialogue(dialogue, file) for file in files for dialogue in read_records(file.path, Dialogue, problems)
    ]
    first: dict[str, Where] = {}
    for dialogue, file in placed:
        if first.setdefault(dialogue.id, dialogue.where) is not dialogue.where:
            problems.add(f"{dialogue.where}: the id is that of {first[dialogue.id]} as well; ids must be unique")
        elif fault := dialogue_fault(dialogue, file, characters):
            problems.add(f"{dialogue.where}: {fault}")
    problems.raise_if_any(
        "samples cannot be cut from some dialogues", "correct the dialogues and run the command again"
    )
    return Dataset(characters, placed)


def dialogue_fault(dialogue: Dialogue, file: DialogueFile, characters: Mapping[str, Character]) -> str | None:
    """What keeps samples from being cut from a dialogue: a sentence with the remedy, or None. A failed one is no fault.

    Args:
        dialogue: the dialogue.
        file: its place, which tells type and distribution.
        characters: all characters by name.
    """
    if dialogue.failed:
        return None
    if image_fault := path_fault(dialogue.image):
        return f"image {shown(dialogue.image)} {image_fault}"
    speakers = dialogue.speakers
    humans = speakers.count(HUMAN_SPEAKER)
    if len(speakers) != 2:
        return f"a dialogue has two speakers, this one has {', '.join(map(shown, speakers))}"
    if humans != (0 if file.type == "inter-role" else 1):
        wanted = "two characters" if file.type == "inter-role" else f'"{HUMAN_SPEAKER}" and a character'
        return f"{file.type} is between {wanted}, here {' and '.join(map(shown, speakers))} speak; move the dialogue"
    for number, utterance in enumerate(dialogue.utterances):
        if utterance.speaker != speakers[number % 2]:
            return (
                f"the speakers must take turns, but {shown(utterance.speaker)} speaks twice at conversations[{number}]"
            )
    if file.type == "comment" and (len(dialogue.utterances) != 2 or speakers[0] != HUMAN_SPEAKER):
        return f'a comment is one question of "{HUMAN_SPEAKER}" and one reply; move longer talks to human-role'
    return _cast_fault([speaker for speaker in speakers if speaker != HUMAN_SPEAKER], file, characters)


def make_sample(dialogue: Dialogue, target: int, characters: Mapping[str, Character]) -> JsonObject:
    """The test sample whose reference answer is utterance `target`, in the published form.

    Args:
        dialogue: a dialogue without a fault.
        target: one of `dialogue.targets`.
        characters: all characters by name.
    """
    utterances = dialogue.utterances
    role = utterances[target].speaker
    partner = next(speaker for speaker in dialogue.speakers if speaker != role)
    other_role = HUMAN_PARTNER if partner == HUMAN_SPEAKER else partner
    cast = {name: characters[name].profile for name in (role, partner) if name != HUMAN_SPEAKER}
    question = role_play_prompt(
        role=role,
        series=characters[role].series,
        other_role=other_role,
        profiles=cast,
        history=utterances[: max(target - 1, 0)],
        last_utterance=utterances[target - 1].value if target else None,
        role_info=dialogue.role_info,
        place_info=dialogue.place_info,
        scene_info=dialogue.scene_info,
    )
    return {
        "id": dialogue.sample_id(target),
        "system": ROLE_PLAY_SYSTEM,
        "image": dialogue.image,
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": utterances[target].value},
        ],
        "role": role,
        "script": characters[role].series,
        "other_role": other_role,
    }


def as_training(sample: JsonObject, kind: str) -> JsonObject:
    """A test sample in the form of training files: with its type, and the image as markup in the user turn."""
    question, answer = sample["conversations"]
    picture = picture_markup([f"{IMAGE_FOLDER}/{sample['image']}"])
    question = question | {"value": picture + question["value"]}
    return {"id": sample["id"], "type": kind} | sample | {"conversations": [question, answer]}


def _cast_fault(names: list[str], file: DialogueFile, characters: Mapping[str, Character]) -> str | None:
    for name in names:
        if name not in characters:
            roles = Path("profiles") / file.distribution / "roles.json"
            return f"{shown(name)} is not in {roles}; add the character, or correct the name"
    series = list(dict.fromkeys(characters[name].series for name in names))
    if len(series) > 1:
        return f"{' and '.join(map(shown, names))} are of two series; a sample names one series for both"
    outside = [name for name in names if characters[name].distribution == OUT_OF_DISTRIBUTION]
    if file.distribution == IN_DISTRIBUTION and outside:
        return (
            f"{shown(outside[0])} is out of distribution and must not be trained on; move it to {OUT_OF_DISTRIBUTION}"
        )
    if file.distribution == OUT_OF_DISTRIBUTION and not outside:
        return f"no speaker is out of distribution; move the dialogue to dialogues/{IN_DISTRIBUTION}"
    return None
