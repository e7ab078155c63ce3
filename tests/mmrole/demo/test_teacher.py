"""The demo's teacher finds each kind of fault, under the metric that it belongs to, and no fault in a reference."""

import random

import pytest

from mmrole.data.prompts import METRICS
from mmrole.data.scores import final_scores
from mmrole.demo.characters import make_characters
from mmrole.demo.drawings import Scene, draw_scene
from mmrole.demo.faults import KINDS, faulty
from mmrole.demo.grammar import TOPICS, reply
from mmrole.demo.teacher import GOOD, find, review

CHARACTERS = make_characters(3)
BLAMED = {
    "other-colour": "Image-Text Relevance",
    "other-topic": "Response Accuracy",
    "other-catchphrase": "Tone Consistency",
    "plain": "Tone Consistency",
    "impostor": "Personality Consistency",
    "assistant": "Instruction Adherence",
    "named": "Instruction Adherence",
    "muddled": "Fluency",
    "babble": "Fluency",
}


def scores(answer, reference, character):
    return {metric: each.score[0] for metric, each in review(answer, reference, character).items()}


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("character", CHARACTERS, ids=lambda character: character.name)
def test_a_reference_is_without_fault(character, topic):
    scene = draw_scene(random.Random(character.name))
    reference = reply(character, topic, scene)
    assert find(reference, character).topic == topic
    assert scores(reference, reference, character) == dict.fromkeys(METRICS, GOOD)


@pytest.mark.parametrize("kind", BLAMED)
def test_a_fault_is_blamed(kind):
    chance = random.Random(kind)
    for character in CHARACTERS:
        scene = draw_scene(chance)
        reference = reply(character, "picture", scene)
        answer = faulty(kind, reference, character, "picture", scene, chance)
        same_opening = find(answer, character).opening == find(reference, character).opening
        if answer != reference and not (kind == "other-catchphrase" and same_opening):  # by chance, of few words
            assert min(scores(answer, reference, character).values()) < GOOD
            if kind not in ("impostor", "muddled"):
                assert scores(answer, reference, character)[BLAMED[kind]] < GOOD, answer


def test_a_wrong_colour_costs_nothing_under_tone():
    character, scene = CHARACTERS[0], Scene("red", "circle", "left", 1)
    reference = reply(character, "picture", scene)
    wrong = scores(reference.replace("red", "blue"), reference, character)
    assert wrong["Image-Text Relevance"] < GOOD
    assert wrong["Tone Consistency"] == wrong["Fluency"] == GOOD


def test_a_review_ends_with_its_scores():
    chance = random.Random(0)
    character, scene = CHARACTERS[-1], draw_scene(chance)
    reference = reply(character, "picture", scene)
    for kind in KINDS:
        answer = faulty(kind, reference, character, "picture", scene, chance)
        for each in review(answer, reference, character).values():
            assert final_scores(each.text) == each.score
