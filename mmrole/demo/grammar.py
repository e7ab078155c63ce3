"""Questions and replies of the demo's characters, generated from a profile and a scene."""

from __future__ import annotations

from mmrole.demo.characters import CastMember
from mmrole.demo.drawings import Scene

TOPICS = ("picture", "friend", "home", "work")
"""What a question can be about."""

_QUESTIONS = {
    "picture": ("What do you see?", "What is in the picture?", "What is this?", "What colour is it?"),
    "friend": ("Who is your friend?", "Whom do you trust?"),
    "home": ("Where do you live?", "Where is your home?"),
    "work": ("What is your work?", "What do you do all day?"),
}
_CHINESE_QUESTIONS = {
    "picture": ("你看见什么？", "画里有什么？", "这是什么？", "它是什么颜色？"),
    "friend": ("你的好友是谁？", "你信任谁？"),
    "home": ("你住在哪里？", "你的家在哪里？"),
    "work": ("你做什么？", "你的行当是什么？"),
}
NUMBERS = ("No", "One", "Two", "Three")
CHINESE_NUMBERS = ("零", "一", "两", "三")
_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_STARTS = {"friend": "I trust ", "home": "I live in ", "work": "I am "}
_CHINESE_STARTS = {"friend": "我信任", "home": "我住在", "work": "我是"}
_PLURALS = {"cross": "crosses"}
CHINESE_WORDS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "brown": "棕色", "black": "黑色", "circle": "圆", "square": "方块", "triangle": "三角", "star": "星星",
    "ring": "圆环", "cross": "十字", "left": "左边", "middle": "中间", "right": "右边",
}  # fmt: skip


def questions(topic: str, chinese: bool) -> tuple[str, ...]:
    """The ways to ask about a topic."""
    return (_CHINESE_QUESTIONS if chinese else _QUESTIONS)[topic]


def reply(character: CastMember, topic: str, scene: Scene | None) -> str:
    """What a character answers: catchphrase, facts, and the word for the listener; without a scene not about it."""
    if character.chinese:
        return f"{character.catchphrase}{fact(character, topic, scene)}，{character.address}。"
    return f"{character.catchphrase} {fact(character, topic, scene)}, {character.address}."


def opening(character: CastMember, topic: str, partner: CastMember, wording: int) -> str:
    """How a character begins a talk with another: the catchphrase, and a question by name."""
    question = questions(topic, character.chinese)[wording]
    if character.chinese:
        return f"{character.catchphrase}{partner.name}，{question}"
    return f"{character.catchphrase} {question[:-1]}, {partner.name}?"


def describe_scene(scene: Scene, chinese: bool) -> str:
    """What is in a picture, as a sentence."""
    return _chinese_scene(scene) + "。" if chinese else _scene(scene) + "."


def fact(character: CastMember, topic: str, scene: Scene | None) -> str:
    """What is true of a topic, in the words of the character; a scene is needed for the picture only."""
    if topic == "picture":
        if scene is None:
            raise ValueError("a picture is told of by its scene")
        return _chinese_scene(scene) if character.chinese else _scene(scene)
    told = {"friend": character.friend, "home": character.home, "work": character.work}[topic]
    return (_CHINESE_STARTS if character.chinese else _STARTS)[topic] + told


def _scene(scene: Scene) -> str:
    shape = scene.shape if scene.count == 1 else _PLURALS.get(scene.shape, scene.shape + "s")
    return f"{NUMBERS[scene.count]} {scene.colour} {shape} {_PLACES[scene.place]}"


def _chinese_scene(scene: Scene) -> str:
    place, colour, shape = (CHINESE_WORDS[word] for word in (scene.place, scene.colour, scene.shape))
    return f"{place}有{CHINESE_NUMBERS[scene.count]}个{colour}的{shape}"
