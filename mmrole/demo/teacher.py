"""The demo's teacher: scores an answer under the eight metrics from what the world knows, by rules, and says why.

It stands for GPT-4, whose reviews the published reward model has learned from. Each review first says what it has found
in the two answers and then scores them, so that a small model can learn to do the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data_utils.prompts import METRICS
from mmrole.demo.characters import Character
from mmrole.demo.drawings import COLOURS, Scene
from mmrole.demo.grammar import CHINESE_WORDS, TOPICS, fact

GOOD, FAIR, POOR = 9, 6, 2

_ASSISTANT = re.compile(r"^(?:Sure|Certainly|As an)\b|^(?:当然|作为)")
_COLOUR_OF = {name: colour for colour in COLOURS for name in (colour, CHINESE_WORDS[colour])}
_COLOUR = re.compile(
    rf"\b(?:{'|'.join(COLOURS)})\b|{'|'.join(CHINESE_WORDS[colour] for colour in COLOURS)}", re.IGNORECASE | re.ASCII
)
_STARTS = {"friend": ("I trust ", "我信任"), "home": ("I live in ", "我住在"), "work": ("I am a", "我是")}
_HAN = re.compile(r"[\u4e00-\u9fff]")
_FLUENT = re.compile(
    r"\s?(?:(?:One|Two|Three) \w+ \w+ (?:on the left|in the middle|on the right)|I (?:trust|live in|am an?) \w+"
    r"|The picture shows [\w ]+)(?:, \w+)?\.(?: [\w ,]+\?)?"
    r"|\s?(?:What|Who|Whom|Where) [\w ,]+\?"
    r"|(?:(?:左边|中间|右边)有[一两三]个\w{2}的\w+|我(?:信任|住在|是)\w+|画里有\w+)(?:，\w+)?。(?:\w+？)?"
    r"|\w+，\w+？"
)


class MetricScore(NamedTuple):
    """A review under one metric: its text, which ends with the scores, and the scores (evaluated, reference)."""

    text: str
    score: tuple[float, float]


class Findings(NamedTuple):
    """What an answer says.

    Attributes:
        colour: the first colour it names, in English; None if it names none.
        topic: what it is about, one of `TOPICS` or "question"; None if it is about nothing.
        is_right: whether what it says about the topic is true of the character and the picture.
        catchphrase: what it begins with, up to the exclamation mark; None without one.
        address: the word that it ends with; None if it ends otherwise.
        is_fluent: whether it is a sentence of the grammar, or of an assistant.
        is_direct: whether it begins with what the character says.
        is_in_language: whether it is in the character's language.
    """

    colour: str | None
    topic: str | None
    is_right: bool
    catchphrase: str | None
    address: str | None
    is_fluent: bool
    is_direct: bool
    is_in_language: bool


def find(answer: str, character: Character, scene: Scene) -> Findings:
    """Reads an answer."""
    catchphrase = re.match(r"[^!！:：]{1,40}[!！]", answer)
    body = answer[catchphrase.end() :] if catchphrase else answer
    ending = re.search(r"[,，]\s?([\w]+)[.。]", body)
    topic, is_right = _topic(body, character, scene)
    colour = colour_in(answer)
    return Findings(
        colour=colour,
        topic=topic,
        is_right=is_right,
        catchphrase=catchphrase[0] if catchphrase else None,
        address=ending[1] if ending else None,
        is_fluent=_FLUENT.fullmatch(body) is not None,
        is_direct=not _ASSISTANT.search(answer) and not re.match(r"[^!！,，.。]{1,20}[:：]", answer),
        is_in_language=bool(_HAN.search(answer)) == character.chinese,
    )


def colour_in(text: str) -> str | None:
    """The first colour that a text names, in English; None if it names none."""
    found = _COLOUR.search(text)
    return _COLOUR_OF[found[0].lower()] if found else None


def review(answer: str, reference: str, character: Character, scene: Scene) -> dict[str, MetricScore]:
    """The eight reviews of an answer, in published order.

    Args:
        answer: the evaluated answer.
        reference: the ground-truth answer, which is without fault.
        character: who is to be played.
        scene: what is in the picture.
    """
    found, wanted = find(answer, character, scene), find(reference, character, scene)
    rules = {
        "Instruction Adherence": _adherence(found),
        "Fluency": _fluency(found),
        "Coherency": _coherency(found, wanted),
        "Image-Text Relevance": _relevance(found, wanted),
        "Response Accuracy": _accuracy(found, wanted),
        "Personality Consistency": _personality(found, wanted),
        "Knowledge Consistency": _knowledge(found, wanted),
        "Tone Consistency": _tone(found, wanted),
    }
    return {metric: _scored(*rules[metric]) for metric in METRICS}


def _adherence(found: Findings) -> tuple[str, int]:
    if not found.is_in_language:
        return "A speaks another language", POOR
    return ("A speaks directly", GOOD) if found.is_direct else ("A does not speak directly", POOR)


def _fluency(found: Findings) -> tuple[str, int]:
    return ("A speaks smoothly", GOOD) if found.is_fluent else ("A stumbles", POOR)


def _coherency(found: Findings, wanted: Findings) -> tuple[str, int]:
    if found.topic is None:
        return "A is about nothing", POOR
    score = GOOD if found.topic == wanted.topic else POOR
    return f"A is about {found.topic}, B is about {wanted.topic}", score


def _relevance(found: Findings, wanted: Findings) -> tuple[str, int]:
    if found.colour == wanted.colour:
        score = GOOD
    else:
        score = POOR if found.colour else FAIR
    return f"A sees {found.colour or 'nothing'}, B sees {wanted.colour or 'nothing'}", score


def _accuracy(found: Findings, wanted: Findings) -> tuple[str, int]:
    if found.topic != wanted.topic:
        return "A does not answer", POOR
    return ("A answers as B does", GOOD) if found.is_right else ("A answers wrongly", FAIR)


def _personality(found: Findings, wanted: Findings) -> tuple[str, int]:
    score = GOOD if found.address == wanted.address else POOR
    return f"A says {found.address or 'nothing'}, B says {wanted.address or 'nothing'}", score


def _knowledge(found: Findings, wanted: Findings) -> tuple[str, int]:
    if found.topic is None:
        return "A knows nothing", POOR
    return ("A knows what B knows", GOOD) if found.is_right else ("A is wrong", FAIR)


def _tone(found: Findings, wanted: Findings) -> tuple[str, int]:
    score = GOOD if found.catchphrase == wanted.catchphrase else POOR
    return f"A begins {found.catchphrase or 'plainly.'} B begins {wanted.catchphrase or 'plainly.'}", score


def _scored(finding: str, score: int) -> MetricScore:
    return MetricScore(f"{finding}, [Scores]: ({score}, {GOOD})", (float(score), float(GOOD)))


def _topic(body: str, character: Character, scene: Scene) -> tuple[str | None, bool]:
    """What an answer is about, and whether it is true; None and false if it is about nothing."""
    for topic in TOPICS:
        if fact(character, topic, scene) in body:
            return topic, True
    for topic, starts in _STARTS.items():
        if any(start in body for start in starts):
            return topic, False
    if colour_in(body) is not None:
        return "picture", False
    return ("question", True) if body.endswith(("?", "？")) else (None, False)
