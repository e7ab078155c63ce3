"""Faulty answers for the training of the reward model: what an agent may do wrong, one fault or more at a time."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import replace

from mmrole.demo.characters import CastMember, make_stranger
from mmrole.demo.drawings import COLOURS, Scene, draw_scene
from mmrole.demo.grammar import TOPICS, describe_scene, reply

KINDS = (
    "faithful",
    "other-colour",
    "other-picture",
    "other-fact",
    "other-topic",
    "other-catchphrase",
    "plain",
    "impostor",
    "assistant",
    "named",
    "muddled",
    "babble",
)
"""What can be wrong with an answer; "faithful" is the reference itself."""


def faulty(
    kind: str,
    reference: str,
    character: CastMember,
    topic: str,
    scene: Scene,
    chance: random.Random,
    reserved: Collection[str] = (),
) -> str:
    """An answer of a kind.

    Args:
        kind: one of `KINDS`.
        reference: the right answer.
        character: who gives it.
        topic: what it is about, one of `TOPICS`; other topics are those of questions.
        scene: what is in the picture.
        chance: where the draws come from.
        reserved: catchphrases that must not occur.
    """
    stranger = make_stranger(chance, character.series, reserved)
    asked = topic if topic in TOPICS else "picture"
    if kind == "other-colour":
        colour = chance.choice([name for name in COLOURS if name != scene.colour])
        return reply(character, "picture", replace(scene, colour=colour))
    if kind == "other-picture":
        return reply(character, "picture", draw_scene(chance))
    if kind == "other-fact":
        liar = stranger.with_manner_of(character)
        return reply(liar, asked, draw_scene(chance))
    if kind == "other-topic":
        return reply(character, chance.choice([each for each in TOPICS if each != asked]), scene)
    if kind == "other-catchphrase":
        return reference.replace(character.catchphrase, stranger.catchphrase)
    if kind == "plain":
        return reference.replace(character.catchphrase, "").strip()
    if kind == "impostor":
        return reply(character.with_manner_of(stranger), asked, scene)
    if kind == "assistant":
        return _assistant(scene, character.chinese)
    if kind == "named":
        return f"{character.name}{'：' if character.chinese else ': '}{reference}"
    if kind == "muddled":
        return _shuffled(reference, character.chinese, chance)
    if kind == "babble":
        return _babble(chance)
    return reference


def _assistant(scene: Scene, chinese: bool) -> str:
    if chinese:
        return f"当然！画里，{describe_scene(scene, True).rstrip('。')}。"
    return f"Sure! The picture shows {describe_scene(scene, False).lower()}"


def _shuffled(text: str, chinese: bool, chance: random.Random) -> str:
    parts = list(text) if chinese else text.split()
    chance.shuffle(parts)
    return ("" if chinese else " ").join(parts)


def _babble(chance: random.Random) -> str:
    """As an untrained model talks: words without sense, some of them stammered, or one over and over."""
    repeats = chance.choice(((1, 1, 2, 3), (20,)))
    words = []
    while len(words) < 20:
        stranger = make_stranger(chance, "Lantern Bay")
        word = chance.choice([*stranger.profile.split(), *stranger.catchphrase.split()])
        words += [word] * chance.choice(repeats)
    return " ".join(words)
