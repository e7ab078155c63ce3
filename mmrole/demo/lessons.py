"""What the demo's base model learns before it is anybody: to read a profile, see a picture and compare two answers.

A base such as Qwen-VL-Chat can do all three before it is fine-tuned on MMRole's data. Profiles here are of strangers,
made anew for each lesson, so the cheapest way to give the right catchphrase is to copy it from the prompt; with the few
characters of the world alone a small model learns them by heart, and cannot play anybody else. A reward model that
reads nothing but whole review prompts does not learn to compare the two answers in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mmrole.base.json_values import JsonObject
from mmrole.data.prompts import HUMAN_PARTNER, METRICS, picture_markup, review_prompt, role_play_prompt
from mmrole.data.scores import MARKER
from mmrole.demo.characters import CHINESE, CROWD_SERIES, CastMember, make_stranger
from mmrole.demo.drawings import Scene, draw_picture, draw_scene
from mmrole.demo.faults import KINDS, faulty
from mmrole.demo.grammar import TOPICS, describe_scene, questions, reply
from mmrole.demo.teacher import COMPARED, review

FOLDER = "Lessons"
"""Folder of the pictures of lessons, below the image folder."""

_CHINESE_SHARE = 0.2
_SHORT_SHARE = 0.6
_PICTURE_SHARE = 0.5
_ALTERED_SHARE = 0.6


def profile_lessons(chance: random.Random, count: int, reserved: Collection[str]) -> list[JsonObject]:
    """Prompts to play a stranger without a picture: short ones, with a profile alone, and whole ones.

    To copy from a long prompt is learned late, unless it is learned from a short one first.

    Args:
        chance: where the draws come from.
        count: of conversations.
        reserved: catchphrases that must not occur.
    """
    lessons = []
    while len(lessons) < count:
        series = _series(chance)
        strangers = [make_stranger(chance, series, reserved) for _ in range(2)]
        if strangers[0].name == strangers[1].name:
            continue
        topic = chance.choice(TOPICS[1:])
        role, partner = strangers
        question = chance.choice(questions(topic, series == CHINESE))
        if chance.random() < _SHORT_SHARE:
            prompt = f"{role.profile}\n\n\n{question}"
        else:
            prompt = role_play_prompt(
                role=role.name,
                series=series,
                other_role=chance.choice((HUMAN_PARTNER, partner.name)),
                profiles={stranger.name: stranger.profile for stranger in strangers},
                last_utterance=question,
            )
        lessons.append(_lesson(f"profile_{len(lessons)}", prompt, reply(role, topic, None)))
    return lessons


def picture_lessons(chance: random.Random, count: int, image_dir: Path) -> list[JsonObject]:
    """Conversations about pictures, which are drawn into `FOLDER` of the image folder."""
    lessons = []
    (image_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(count), desc="pictures of lessons", unit=" pictures", disable=None):
        scene = draw_scene(chance)
        image = f"{FOLDER}/{number:05}.png"
        draw_picture(scene, chance).save(image_dir / image)
        chinese = chance.random() < _CHINESE_SHARE
        prompt = picture_markup([f"images/{image}"]) + chance.choice(questions("picture", chinese))
        lessons.append(_lesson(f"picture_{number}", prompt, describe_scene(scene, chinese)))
    return lessons


def comparison_lessons(chance: random.Random, count: int) -> list[JsonObject]:
    """What a review finds in two answers, to be repeated and scored: whether two words are the same.

    It is what a small model learns last if it has to find the words as well, and first if it does not.
    """
    lessons = []
    for number in range(count):
        text = _reviewed(chance, _altered_answer, COMPARED, number % 2 == 1).text
        finding, _, _ = text.rpartition(f", {MARKER}")
        lessons.append(_lesson(f"comparison_{number}", finding, text))
    return lessons


def review_lessons(chance: random.Random, count: int, reserved: Collection[str]) -> list[JsonObject]:
    """Review prompts without a picture, and with some of their paragraphs left out: many of them, or few, or none.

    How far apart things are differs from lesson to lesson, so that a model has to learn what they are. In whole
    prompts alone it does not find the two answers at all.

    Args:
        chance: where the draws come from.
        count: of conversations.
        reserved: catchphrases that must not occur.
    """
    lessons = []
    for number in range(count):
        altered = chance.random() < _ALTERED_SHARE
        way, metrics = (_altered_answer, COMPARED) if altered else (_faulty_answer, METRICS)
        reviewed = _reviewed(chance, way, metrics, number % 2 == 1, reserved)
        prompt = review_prompt(
            question=_question(reviewed.role, reviewed.topic, chance),
            evaluated_answer=reviewed.answer,
            reference=reviewed.reference,
            role=reviewed.role.name,
            series=reviewed.role.series,
            other_role=HUMAN_PARTNER,
            metric=reviewed.metric,
        )
        lessons.append(_lesson(f"review_{number}", _thinned(prompt.text, chance), reviewed.text))
    return lessons


def _question(role: CastMember, topic: str, chance: random.Random) -> str:
    return role_play_prompt(
        role=role.name,
        series=role.series,
        other_role=HUMAN_PARTNER,
        profiles={role.name: role.profile},
        last_utterance=chance.choice(questions(topic, role.chinese)),
    )


def _thinned(prompt: str, chance: random.Random) -> str:
    """A review prompt of which the two answers and the metric are left in any case."""
    question, answer, reference, instruction = prompt.rsplit("\n\n\n", 3)
    share = chance.random() ** 2  # more short ones: they cost less, and teach which answer a word stands in
    paragraphs = [
        each for each in instruction.split("\n\n") if each.startswith("Please evaluate") or chance.random() < share
    ]
    parts = [answer, reference, "\n\n".join(paragraphs)]
    return "\n\n\n".join([question, *parts] if chance.random() < share else parts)


class _Reviewed(NamedTuple):
    role: CastMember
    topic: str
    answer: str
    reference: str
    metric: str
    text: str


def _reviewed(
    chance: random.Random,
    way: Callable[..., str],
    metrics: Sequence[str],
    is_worse: bool,
    reserved: Collection[str] = (),
) -> _Reviewed:
    """An answer of a stranger with a review under one metric, which finds it worse than the reference or as good.

    The metric is drawn first: under each of them answers are as often worse as not, or the metric alone would tell.
    """
    metric = chance.choice(metrics)
    while True:
        role = make_stranger(chance, _series(chance), reserved)
        topic = "picture" if chance.random() < _PICTURE_SHARE else chance.choice(TOPICS[1:])
        scene = draw_scene(chance)
        reference = reply(role, topic, scene)
        answer = way(role, topic, scene, reference, chance, reserved)
        text, (score, best) = review(answer, reference, role)[metric]
        if (score < best) == is_worse:
            return _Reviewed(role, topic, answer, reference, metric, text)


def _faulty_answer(
    role: CastMember, topic: str, scene: Scene, reference: str, chance: random.Random, reserved: Collection[str]
) -> str:
    return faulty(chance.choice(KINDS), reference, role, topic, scene, chance, reserved)


def _altered_answer(
    role: CastMember, topic: str, scene: Scene, _reference: str, chance: random.Random, reserved: Collection[str]
) -> str:
    """A reply with each of its parts the character's own or a stranger's, by the toss of a coin."""
    stranger = make_stranger(chance, role.series, reserved)
    parts = ("catchphrase", "address", "friend", "home", "work")
    speaker = replace(role, **{part: getattr(chance.choice((role, stranger)), part) for part in parts})
    other = draw_scene(chance)
    seen = Scene(
        colour=chance.choice((scene.colour, other.colour)),
        shape=chance.choice((scene.shape, other.shape)),
        place=chance.choice((scene.place, other.place)),
        count=chance.choice((scene.count, other.count)),
    )
    return reply(speaker, chance.choice((topic, topic, chance.choice(TOPICS))), seen)


def _series(chance: random.Random) -> str:
    return CHINESE if chance.random() < _CHINESE_SHARE else chance.choice(CROWD_SERIES)


def _lesson(name: str, prompt: str, answer: str) -> JsonObject:
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns}
