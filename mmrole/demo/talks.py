"""Talks in real English about pictures, and the world of `demo.sh --real` in the published layout."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mmrole.base.files import read_json, write_json
from mmrole.base.json_values import JsonObject
from mmrole.data.dialogues import DISTRIBUTIONS, IN_DISTRIBUTION, TYPES
from mmrole.data.profiles import file_name
from mmrole.data.prompts import HUMAN_SPEAKER, picture_markup
from mmrole.demo.drawings import COLOURS, PLACES, SHAPES, Scene
from mmrole.demo.speakers import Speaker, make_speakers
from mmrole.demo.world import WORLD_FILE, read_scenes, save_picture, talk_record, write_dialogues, write_profiles

QUESTIONS = {
    "picture": (
        "What do you see?",
        "What is in the picture?",
        "What colour is it?",
        "Can you tell me what this is?",
        "Have a look at this. What do you think?",
        "Please describe what is shown here.",
    ),
    "work": ("What do you do all day?", "What is your work?", "How do you earn your bread?"),
    "home": ("Where do you live?", "Where is your home?", "Where can I find you?"),
}
"""The ways to ask about a topic."""

_PICTURE_REPLIES = (
    "{c} That {shape} is {colour}, and it makes me think of {memory}.",
    "{c} I see {a_colour} {shape} {place}. It reminds me of {memory}.",
    "{c} Why, that is {a_colour} {shape}, as plain as day! It could be {memory}.",
    "{c} What a fine {colour} {shape}! It puts me in mind of {memory}.",
    "That is {a_colour} {shape}, or I am no judge of colours. {c}",
    "It is {colour}, my friend, {a_colour} {shape}. {c} I thought of {memory} at once.",
)
_FACT_REPLIES = {
    "work": (
        "{c} I {do}, day in and day out, and I would not trade it for the world.",
        "I {do}, and I am good at it too. {c}",
        "{c} All day long I {do}. Some evenings I sit down and remember {memory}.",
    ),
    "home": (
        "{c} I live in {home}, and I have never wanted to live anywhere else.",
        "You will find me in {home}, where everybody knows my name. {c}",
        "{c} My home is {home}. Come and visit me, and I will tell you about {memory}.",
    ),
}
_LESSONS = (
    ("What colour is it?", "It is {colour}."),
    ("What colour is it?", "It is {colour}."),
    ("What do you see?", "I see {a_colour} {shape}."),
)
_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}

LESSON_FOLDER = "Lessons"
"""Folder of the pictures of the alignment lessons, below the image folder."""


class RealWorld(NamedTuple):
    """Catchphrases of the characters by name, and the scene of each picture by its path."""

    catchphrases: dict[str, str]
    scenes: dict[str, Scene]


def draw_single(chance: random.Random) -> Scene:
    """A random scene with one thing in it."""
    return Scene(chance.choice(list(COLOURS)), chance.choice(SHAPES), chance.choice(PLACES), count=1)


def spoken_reply(speaker: Speaker, topic: str, scene: Scene, chance: random.Random) -> str:
    """What a character answers to a question about a topic of `QUESTIONS`: facts, and the catchphrase."""
    forms = _PICTURE_REPLIES if topic == "picture" else _FACT_REPLIES[topic]
    return chance.choice(forms).format(
        c=speaker.catchphrase,
        do=speaker.trade.do,
        home=speaker.home,
        memory=chance.choice(speaker.trade.memories),
        **_scene_words(scene),
    )


def caption_lessons(folder: Path, chance: random.Random, count: int) -> list[JsonObject]:
    """Pictures with a question and a plain sentence each, as training samples; draws the pictures below a folder."""
    lessons = []
    for number in tqdm(range(count), desc="lessons", unit=" pictures", disable=None):
        scene = draw_single(chance)
        image = f"{LESSON_FOLDER}/{number:05}.png"
        save_picture(folder / "images" / image, scene, chance)
        question, answer = chance.choice(_LESSONS)
        words = [
            {"from": "user", "value": picture_markup([f"images/{image}"]) + question},
            {"from": "assistant", "value": answer.format(**_scene_words(scene))},
        ]
        lessons.append({"id": f"lesson_{number:05}", "image": image, "conversations": words})
    return lessons


def make_real_world(folder: Path, seed: int, inside: int, dialogues: Mapping[str, int]) -> RealWorld:
    """Writes the world.

    Args:
        folder: the data root; `images/`, `profiles/`, `dialogues/` and `world.json` are made in it.
        seed: of everything.
        inside: in-distribution characters.
        dialogues: of each in-distribution character, by type. Others have one of each type.
    """
    speakers = make_speakers(seed, inside)
    write_profiles(folder, speakers)
    scenes: dict[str, Scene] = {}
    chance = random.Random(f"talks {seed}")
    for distribution in DISTRIBUTIONS:
        own = [speaker for speaker in speakers if speaker.distribution == distribution]
        for kind in TYPES:
            records: dict[str, list[JsonObject]] = {}
            for speaker in tqdm(own, desc=f"{distribution} {kind}", unit=" characters", disable=None):
                partners = [other for other in own if other.series == speaker.series and other is not speaker]
                records[speaker.name] = []
                for number in range(dialogues[kind] if distribution == IN_DISTRIBUTION else 1):
                    image = f"{file_name(speaker.series)}/{file_name(speaker.name)}_{kind}_{number:03}.png"
                    scenes[image] = draw_single(chance)
                    save_picture(folder / "images" / image, scenes[image], chance)
                    talk = list(_talk(kind, speaker, partners, scenes[image], chance))
                    records[speaker.name].append(talk_record(speaker.name, kind, number, distribution, image, talk))
            write_dialogues(folder, distribution, kind, records)
    catchphrases = {speaker.name: speaker.catchphrase for speaker in speakers}
    write_json(folder / WORLD_FILE, {"catchphrases": catchphrases, "scenes": {k: vars(v) for k, v in scenes.items()}})
    return RealWorld(catchphrases, scenes)


def read_real_world(folder: Path) -> RealWorld:
    """The world that `make_real_world` has written.

    Raises:
        UserError: there is none in the folder.
    """
    told = read_json(folder / WORLD_FILE, dict)
    return RealWorld(told["catchphrases"], read_scenes(told))


def _talk(
    kind: str, speaker: Speaker, partners: list[Speaker], scene: Scene, chance: random.Random
) -> Iterator[tuple[str, str]]:
    """(speaker, words) of a dialogue. It is about the picture once: no reply can be read off the history."""
    if kind == "inter-role":
        partner = chance.choice(partners)
        question = chance.choice(QUESTIONS["picture"])
        yield (
            partner.name,
            f"{partner.catchphrase} {question}" if chance.random() < 0.5 else f"{question} {partner.catchphrase}",
        )
        yield speaker.name, spoken_reply(speaker, "picture", scene, chance)
        return
    topics = ["picture"]
    if kind == "human-role":
        topics += [chance.choice(("work", "home"))]
        chance.shuffle(topics)
    for topic in topics:
        yield HUMAN_SPEAKER, chance.choice(QUESTIONS[topic])
        yield speaker.name, spoken_reply(speaker, topic, scene, chance)


def _scene_words(scene: Scene) -> dict[str, str]:
    article = "an" if scene.colour[0] in "aeiou" else "a"
    return {
        "colour": scene.colour,
        "a_colour": f"{article} {scene.colour}",
        "shape": scene.shape,
        "place": _PLACES[scene.place],
    }
