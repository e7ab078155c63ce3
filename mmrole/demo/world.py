"""Writes the world of the demo in the published layout (profiles, pictures, dialogues), and reads it again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mmrole.base.files import read_json, write_json
from mmrole.base.json_values import JsonObject
from mmrole.data.dialogues import DISTRIBUTIONS, ID_NAMES, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TYPES
from mmrole.data.profiles import file_name, profile_folder
from mmrole.demo.characters import CastMember, make_characters
from mmrole.demo.drawings import Scene, draw_picture, draw_scene
from mmrole.demo.grammar import TOPICS, opening, questions, reply
from mmrole.demo.speakers import Speaker

WORLD_FILE = "world.json"
"""Characters, and what is in each picture by its path: what the teacher and the final table know, the models do not."""


class World(NamedTuple):
    """Characters by name, and the scene of each picture by its path."""

    characters: dict[str, CastMember]
    scenes: dict[str, Scene]


def make_world(folder: Path, seed: int, dialogues: int) -> World:
    """Writes a world.

    Args:
        folder: the data root; `images/`, `profiles/`, `dialogues/` and `world.json` are made in it.
        seed: of everything.
        dialogues: of each in-distribution character and type. Others have one of each type.
    """
    characters = make_characters(seed)
    write_profiles(folder, characters)
    scenes: dict[str, Scene] = {}
    chance = random.Random(f"pictures {seed}")
    for distribution in DISTRIBUTIONS:
        own = [character for character in characters if character.distribution == distribution]
        count = dialogues if distribution == IN_DISTRIBUTION else 1
        for kind in TYPES:
            records_of: dict[str, list[JsonObject]] = {}
            for character in tqdm(own, desc=f"{distribution} {kind}", unit=" characters", disable=None):
                partners = [other for other in own if other.series == character.series and other is not character]
                records = []
                for number in range(count):
                    image = f"{file_name(character.series)}/{file_name(character.name)}_{kind}_{number:03}.png"
                    scenes[image] = draw_scene(chance)
                    save_picture(folder / "images" / image, scenes[image], chance)
                    talk = list(_talk(kind, character, partners, scenes[image], chance))
                    records.append(talk_record(character.name, kind, number, distribution, image, talk))
                records_of[character.name] = records
            write_dialogues(folder, distribution, kind, records_of)
    world = {"characters": [asdict(character) for character in characters]}
    write_json(folder / WORLD_FILE, world | {"scenes": {image: asdict(scene) for image, scene in scenes.items()}})
    return World({character.name: character for character in characters}, scenes)


def read_world(folder: Path) -> World:
    """The world that `make_world` has written.

    Raises:
        UserError: there is none in the folder.
    """
    told = read_json(folder / WORLD_FILE, dict)
    characters = [CastMember(**row | {"traits": tuple(row["traits"])}) for row in told["characters"]]
    return World({character.name: character for character in characters}, read_scenes(told))


def read_scenes(told: JsonObject) -> dict[str, Scene]:
    """The scene of each picture by its path, from what `world.json` holds."""
    return {image: Scene(**scene) for image, scene in told["scenes"].items()}


def _talk(
    kind: str, character: CastMember, partners: list[CastMember], scene: Scene, chance: random.Random
) -> Iterator[tuple[str, str]]:
    """(speaker, words) of a dialogue. It is about the picture once: no reply can be read off the history."""

    def question(topic: str) -> str:
        return chance.choice(questions(topic, character.chinese))

    if kind == "comment":
        yield "human", question("picture")
        yield character.name, reply(character, "picture", scene)
    elif kind == "human-role":
        topics = ["picture", chance.choice(TOPICS[1:])]
        chance.shuffle(topics)
        for topic in topics:
            yield "human", question(topic)
            yield character.name, reply(character, topic, scene)
    else:
        partner = chance.choice(partners)
        speakers = (partner, character)
        topics = ["picture", chance.choice(TOPICS[1:])]
        chance.shuffle(topics)
        for asked, topic in enumerate(topics):
            asker, answerer = speakers[asked % 2], speakers[1 - asked % 2]
            if asked == 0:
                wording = chance.randrange(len(questions(topic, asker.chinese)))
                yield asker.name, opening(asker, topic, answerer, wording)
            yield (
                answerer.name,
                reply(answerer, topic, scene) + ("" if asked else _and_ask(topics[1], answerer, chance)),
            )


def _and_ask(topic: str, character: CastMember, chance: random.Random) -> str:
    question = chance.choice(questions(topic, character.chinese))
    return question if character.chinese else f" {question}"


def write_dialogues(folder: Path, distribution: str, kind: str, records: Mapping[str, list[JsonObject]]) -> None:
    """Writes the dialogues of a distribution and type, given by owner: in distribution, a file for each of them."""
    place = folder / "dialogues" / distribution
    if distribution == OUT_OF_DISTRIBUTION:
        write_json(place / f"{kind}.json", [record for own in records.values() for record in own])
        return
    for owner, own in records.items():
        write_json(place / kind / f"{file_name(owner)}_script.json", own)


def talk_record(
    name: str, kind: str, number: int, distribution: str, image: str, talk: list[tuple[str, str]]
) -> JsonObject:
    """A dialogue in the published form; `talk` is of (speaker, words)."""
    suffix = f"_{number}" if distribution == IN_DISTRIBUTION else ""
    first = "from" if kind == "comment" else "role"
    return {
        "id": f"{file_name(name)}_{ID_NAMES[kind]}_script{suffix}",
        "image": image,
        "conversations": [
            {first if place == 0 else "role": speaker, "value": words} for place, (speaker, words) in enumerate(talk)
        ],
    }


def write_profiles(folder: Path, characters: Sequence[CastMember | Speaker]) -> None:
    """Writes `profiles/` of both distributions below a folder."""
    for distribution in DISTRIBUTIONS:
        own = [character for character in characters if character.distribution == distribution]
        place = profile_folder(folder, distribution)
        series = dict.fromkeys(character.series for character in own)
        write_json(place / "roles.json", {name: [c.name for c in own if c.series == name] for name in series})
        write_json(place / "profiles.json", {character.name: character.profile for character in own})
        for character in own:
            write_json(place / "detailed_profiles" / f"{file_name(character.name)}.json", character.detailed_profile)


def save_picture(path: Path, scene: Scene, chance: random.Random) -> None:
    """Draws a picture of a scene into a file; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_picture(scene, chance).save(path)
