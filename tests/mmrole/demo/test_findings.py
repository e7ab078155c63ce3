"""The figures of the demo's final table, on answers whose quality is known."""

import math
import random

import pytest

from mmrole.data.prompts import METRICS
from mmrole.demo import controls, findings
from mmrole.demo.characters import make_characters
from mmrole.demo.drawings import Scene
from mmrole.demo.grammar import reply
from mmrole.demo.world import World

SCENES = {
    "a.png": Scene("red", "circle", "left", 1),
    "b.png": Scene("blue", "star", "right", 2),
    "c.png": Scene("green", "cross", "middle", 3),
}


@pytest.fixture(scope="module")
def world():
    return World({each.name: each for each in make_characters(5)}, SCENES)


def record(character, image, answer=None, described=None):
    reference = reply(character, "picture", SCENES[image])
    return {
        "id": f"{character.name}_{image}",
        "system": "s",
        "image": image,
        "conversations": [
            {
                "from": "user",
                "value": f"The description of {character.name} is as follows:\n{character.profile}\n\n\nWhat?",
            },
            {"from": "assistant", "value": reference, "answer": reference if answer is None else answer},
        ],
        "role": character.name,
        "script": character.series,
        "other_role": "a curious human",
    }


def test_right_answers_reach_everything(world):
    records = [record(character, "b.png") for character in world.characters.values()]
    assert findings.seen(records, world) == (1, 1, 1, 1, len(records))
    assert findings.addresses(records, world) == 1
    assert findings.speaks_as(records, findings.own(records, world)) == 1


def test_what_is_told_of_a_profile_is_counted_by_its_topic(world):
    one, other = (each for each in list(world.characters.values())[:2])
    answers = [reply(one, "home", None), reply(other, "home", None), "Nothing.", reply(one, "work", None)]
    records = [record(one, "a.png", answer) for answer in answers]
    for each in records:
        each["conversations"][1]["value"] = reply(one, "home", None)
    assert one.home != other.home
    assert findings.told(records, "home", world) == (0.25, 4)
    assert findings.told(records[:0], "work", world)[1] == 0


def test_another_characters_manner_is_out_of_character(world):
    one, other = list(world.characters.values())[:2]
    records = [record(one, "a.png", reply(one.with_manner_of(other), "picture", SCENES["a.png"]))]
    assert findings.speaks_as(records, [one]) == findings.addresses(records, world) == 0
    assert findings.speaks_as(records, [other]) == 1


def test_exchanged_pictures_are_compared_with_what_is_shown_and_with_the_reference(world):
    characters = list(world.characters.values())[:3]
    records = [record(character, image) for character, image in zip(characters, SCENES, strict=True)]
    exchanged = controls.exchange_pictures(records, random.Random(2))
    assert sorted(each["image"] for each in exchanged) == sorted(SCENES)
    assert [each["reference_image"] for each in exchanged] == list(SCENES)
    moved = sum(each["image"] != each["reference_image"] for each in exchanged)
    assert findings.seen(exchanged, world).colour == pytest.approx(1 - moved / 3)


def test_an_exchanged_profile_is_that_of_another_with_the_name_kept(world):
    outside = [each for each in world.characters.values() if each.distribution == "out-of-distribution"]
    sample = record(outside[0], "a.png")
    sample["conversations"][0]["value"] += f"\n[{outside[0].name}]: {outside[0].catchphrase} I am a judge."
    (exchanged,) = controls.exchange_profiles([sample], world)
    prompt = exchanged["conversations"][0]["value"]
    other = world.characters[controls.impersonated(outside[0].name, world)]
    assert other.catchphrase in prompt
    assert outside[0].catchphrase not in prompt
    assert outside[0].name in prompt


def test_the_teachers_own_reviews_agree_with_it(world):
    character = next(iter(world.characters.values()))
    records = [
        controls.reviewed_sample(record(character, "a.png"), reply(character, "picture", scene), world)
        for scene in SCENES.values()
    ]
    assert findings.parsed(records) == 1
    agreement = findings.agreement(records, world)
    assert agreement.pooled == pytest.approx(1)
    assert agreement.within == pytest.approx(1)
    assert agreement.by_metric["Image-Text Relevance"] == pytest.approx(1)
    assert math.isnan(agreement.by_metric["Fluency"])  # nothing to tell apart
    assert findings.separated(records[:1] * 2, records[1:]) == 1


def test_a_lead_is_that_of_the_better_reviews(world):
    character = next(iter(world.characters.values()))
    samples = [record(character, image) for image in SCENES]
    right = [controls.reviewed_sample(each, each["conversations"][1]["value"], world) for each in samples]
    wrong = [controls.reviewed_sample(each, "Hm.", world) for each in samples]
    assert findings.lead(right, wrong).low > 0
    assert findings.lead(wrong, right).high < 0
    assert findings.lead(right, right)[:3] == (0, 0, 0)


def test_a_review_without_scores_counts_as_not_parsed(world):
    reviewed = controls.reviewed_sample(record(next(iter(world.characters.values())), "a.png"), "Hm.", world)
    reviewed["rm_review"]["Fluency"]["score"] = None
    assert findings.parsed([reviewed]) == pytest.approx(1 - 1 / len(METRICS))


def test_a_gate_does_not_pass_without_a_figure():
    assert not findings.gate_from("x", math.nan, "y", 0).holds
    assert not findings.at_most("x", math.nan, "y", 1).holds


def test_a_ring_is_no_circle(world):
    scene = Scene("red", "circle", "left", 1)
    image = next(iter(world.scenes))
    told = world._replace(scenes={image: scene})

    def shape(answer):
        turns = [{}, {"value": "One red circle on the left.", "answer": answer}]
        return findings.seen([{"image": image, "conversations": turns}], told).shape

    assert shape("左边有一个红色的圆，道友。") == shape("Two red circles on the right.") == 1
    assert shape("左边有一个红色的圆环，道友。") == shape("One red ring on the left.") == 0
