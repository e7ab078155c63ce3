"""Controls of the demo: training on exchanged pictures, prompts with exchanged profiles or pictures, probe reviews."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence

from mmrole.base.json_values import JsonObject
from mmrole.data.dialogues import OUT_OF_DISTRIBUTION
from mmrole.data.prompts import picture_markup, split_pictures
from mmrole.demo.faults import KINDS, faulty
from mmrole.demo.teacher import find, review
from mmrole.demo.world import World


def exchange_pictures(samples: Sequence[JsonObject], chance: random.Random) -> list[JsonObject]:
    """Samples, of training or of a test, each dialogue with the picture of another one."""
    images = list(dict.fromkeys(sample["image"] for sample in samples))
    chance.shuffle(images)
    image_of = dict(zip(images, images[1:] + images[:1], strict=True))
    exchanged = copy.deepcopy(list(samples))
    for sample in exchanged:
        sample["reference_image"] = sample["image"]
        sample["image"] = image_of[sample["image"]]
        turn = sample["conversations"][0]
        markup, text = split_pictures(turn["value"])
        if markup:
            turn["value"] = picture_markup([f"images/{sample['image']}"]) + text
    return exchanged


def exchange_profiles(samples: Sequence[JsonObject], world: World) -> list[JsonObject]:
    """Test samples whose prompts describe every out-of-distribution character as the next one, who also talks so."""
    texts = {}
    for character in (each for each in world.characters.values() if each.distribution == OUT_OF_DISTRIBUTION):
        other = world.characters[impersonated(character.name, world)]
        # The name in the description stays, so that the profile is the only thing that is another's.
        texts[character.profile] = other.profile.replace(other.name, character.name)
        # What was said before is in the new manner as well, or the prompt would contradict itself.
        texts[character.catchphrase] = other.catchphrase
    # All at once, profiles before the catchphrases in them: what was exchanged is not exchanged again.
    own = re.compile("|".join(map(re.escape, texts)))
    exchanged = copy.deepcopy(list(samples))
    for sample in exchanged:
        turn = sample["conversations"][0]
        turn["value"] = own.sub(lambda match: texts[match[0]], turn["value"])
    return exchanged


def impersonated(name: str, world: World) -> str:
    """Whose profile `exchange_profiles` gives a character."""
    distribution = world.characters[name].distribution
    circle = [each.name for each in world.characters.values() if each.distribution == distribution]
    return circle[(circle.index(name) + 1) % len(circle)]


def teacher_reviews(
    samples: Sequence[JsonObject], world: World, answers: int, chance: random.Random
) -> dict[str, list[JsonObject]]:
    """Reviewed answers to training samples, by what is wrong with them.

    Args:
        samples: of the training file.
        world: what the teacher knows.
        answers: how many kinds of answer each sample gets.
        chance: where the draws come from.
    """
    reviewed: dict[str, list[JsonObject]] = {kind: [] for kind in KINDS}
    reserved = [each.catchphrase for each in world.characters.values() if each.distribution == OUT_OF_DISTRIBUTION]
    for sample in samples:
        for kind in chance.sample(KINDS, answers):
            character, scene = world.characters[sample["role"]], world.scenes[sample["image"]]
            reference = sample["conversations"][1]["value"]
            topic = find(reference, character).topic
            if topic is None:
                raise ValueError(f"the reference of {sample['id']} has no topic of the demo")
            answer = faulty(kind, reference, character, topic, scene, chance, reserved)
            reviewed[kind].append(reviewed_sample(sample, answer, world))
    return reviewed


def reviewed_sample(sample: JsonObject, answer: str, world: World) -> JsonObject:
    """A sample with an answer and the teacher's reviews of it, in the published form."""
    scores = review(answer, sample["conversations"][1]["value"], world.characters[sample["role"]])
    return _answered(sample, answer) | {
        "rm_review": {metric: {"review": text, "score": list(score)} for metric, (text, score) in scores.items()}
    }


def _answered(sample: JsonObject, answer: str) -> JsonObject:
    """A sample, of training or of a test, with an answer, in the published form of answers."""
    question, reference = sample["conversations"]
    return {key: sample[key] for key in ("id", "system", "image")} | {
        "conversations": [
            {"from": "user", "value": split_pictures(question["value"])[1]},
            {"from": "assistant", "value": reference["value"], "answer": answer},
        ],
        **{key: sample[key] for key in ("role", "script", "other_role")},
    }


PROBES = ("faithful", "other-colour", "mixed")
"""Kinds of answer that the reward model is tried on; "mixed" has faults of all kinds."""


def probes(tests: Sequence[JsonObject], world: World, chance: random.Random) -> dict[str, list[JsonObject]]:
    """Answers to test samples about pictures, by `PROBES`."""
    probed: dict[str, list[JsonObject]] = {probe: [] for probe in PROBES}
    for sample in tests:
        character, scene = world.characters[sample["role"]], world.scenes[sample["image"]]
        reference = sample["conversations"][1]["value"]
        topic = find(reference, character).topic
        if topic != "picture":
            continue
        for probe, records in probed.items():
            kind = chance.choice(KINDS) if probe == "mixed" else probe
            answer = faulty(kind, reference, character, topic, scene, chance)
            records.append(_answered(sample, answer))
    return probed
