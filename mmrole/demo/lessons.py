"""What the demo's base model learns before it becomes anybody: to read a profile, and to tell what is in a picture.

A base such as Qwen-VL-Chat can do both before it is fine-tuned on MMRole's data. Profiles here are of strangers, made
anew for each lesson, so the cheapest way to give the right catchphrase is to copy it from the prompt; with the few
characters of the world alone a small model learns them by heart, and cannot play anybody else.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_utils.prompts import HUMAN_PARTNER, picture_markup, role_play_prompt
from mmrole.demo.characters import CHINESE, CROWD_SERIES, make_stranger
from mmrole.demo.drawings import draw, draw_scene
from mmrole.demo.grammar import TOPICS, describe, questions, reply

Json = dict[str, Any]

FOLDER = "Lessons"
"""Folder of the pictures of lessons, below the image folder."""

_CHINESE_SHARE = 0.15
_SHORT_SHARE = 0.6


def profile_lessons(chance: random.Random, count: int, reserved: Collection[str]) -> list[Json]:
    """Prompts to play a stranger without a picture: short ones, with a profile alone, and whole ones.

    To copy from a long prompt is learned late, unless it is learned from a short one first.

    Args:
        chance: where the draws come from.
        count: of conversations.
        reserved: catchphrases that must not occur.
    """
    lessons = []
    while len(lessons) < count:
        series = CHINESE if chance.random() < _CHINESE_SHARE else chance.choice(CROWD_SERIES)
        strangers = [make_stranger(chance, series) for _ in range(2)]
        if strangers[0].name == strangers[1].name or any(stranger.catchphrase in reserved for stranger in strangers):
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


def picture_lessons(chance: random.Random, count: int, image_dir: Path) -> list[Json]:
    """Conversations about pictures, which are drawn into `FOLDER` of the image folder."""
    lessons = []
    (image_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(count), desc="pictures of lessons", unit=" pictures", disable=None):
        scene = draw_scene(chance)
        image = f"{FOLDER}/{number:05}.png"
        draw(scene, chance).save(image_dir / image)
        chinese = chance.random() < _CHINESE_SHARE
        prompt = picture_markup([f"images/{image}"]) + chance.choice(questions("picture", chinese))
        lessons.append(_lesson(f"picture_{number}", prompt, describe(scene, chinese)))
    return lessons


def _lesson(name: str, prompt: str, answer: str) -> Json:
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns}
