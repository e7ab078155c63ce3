"""The demo's teacher: scores an answer under the eight metrics by rules, from the reference that the world has written.

It stands for GPT-4, whose reviews the published reward model has learned from. A review first names what decides, in
the answer (A) and in the reference (B), and then scores: `A sees red, B sees blue, [Scores]: (2, 9)`. All comparisons
have this one form, since a small model learns one form sooner than six.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mmrole.data.prompts import METRICS
from mmrole.demo.characters import CastMember
from mmrole.demo.drawings import COLOURS
from mmrole.demo.grammar import CHINESE_WORDS

GOOD, FAIR, POOR = 9, 6, 2

COMPARED = (
    "Coherency",
    "Image-Text Relevance",
    "Response Accuracy",
    "Personality Consistency",
    "Knowledge Consistency",
    "Tone Consistency",
)
"""Metrics under which a word of the answer is compared with one of the reference."""

_ASSISTANT = re.compile(r"^(?:Sure|Certainly|As an)\b|^(?:当然|作为)")
_COLOUR_OF = {name: colour for colour in COLOURS for name in (colour, CHINESE_WORDS[colour])}
_COLOUR = re.compile(
    rf"\b(?:{'|'.join(COLOURS)})\b|{'|'.join(CHINESE_WORDS[colour] for colour in COLOURS)}", re.IGNORECASE | re.ASCII
)
_STARTS = {"friend": ("I trust ", "我信任"), "home": ("I live in ", "我住在"), "work": ("I am a", "我是")}
# What is in the picture and where, in either language; or the word that says who, where or what.
_SCENE = re.compile(
    r"(?:one|two|three) \w+ (?P<thing>\w+) (?:on|in) the (?P<detail>left|middle|right)"
    r"|(?P<chinese_detail>左边|中间|右边)有[一两三]个\w{2}的(?P<chinese_thing>\w+)",
    re.IGNORECASE,
)
_FACT = re.compile(r"I (?:trust|live in|am an?) (\w+)|我(?:信任|住在|是)(\w+)")
_QUESTION = re.compile(r"(\w+)[?？]")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_FLUENT = re.compile(
    r"\s?(?:(?:One|Two|Three) \w+ \w+ (?:on the left|in the middle|on the right)|I (?:trust|live in|am an?) \w+"
    r"|The picture shows [\w ]+)(?:, \w+)?\.(?: [\w ,]+\?)?"
    r"|\s?(?:What|Who|Whom|Where) [\w ,]+\?"
    r"|(?:(?:左边|中间|右边)有[一两三]个\w{2}的\w+|我(?:信任|住在|是)\w+|画里，\w+)(?:，\w+)?。(?:\w+？)?"
    r"|\w+，\w+？"
)


class MetricScore(NamedTuple):
    """A review under one metric: its text, which ends with the scores, and the scores (evaluated, reference)."""

    text: str
    score: tuple[float, float]


class Findings(NamedTuple):
    """What an answer says.

    Attributes:
        colour: the first colour that it names, in English; None if it names none.
        topic: what it is about, one of `TOPICS` or "question"; None if it is about nothing.
        thing: the shape that it sees, or the friend, home or work that it names; None if it names none.
        detail: where the shape is; without a shape the same as `thing`.
        opening: the first word of the catchphrase; None without one.
        address: the word that it ends with; None if it ends otherwise.
        is_fluent: whether it is a sentence of the grammar, or of an assistant.
        is_direct: whether it begins with what the character says.
        is_in_language: whether it is in the character's language.
    """

    colour: str | None
    topic: str | None
    thing: str | None
    detail: str | None
    opening: str | None
    address: str | None
    is_fluent: bool
    is_direct: bool
    is_in_language: bool


def find(answer: str, character: CastMember) -> Findings:
    """Reads an answer that `character` should have given."""
    catchphrase = re.match(r"[^!！:：]{1,40}[!！]", answer)
    body = answer[catchphrase.end() :] if catchphrase else answer
    ending = re.search(r"[,，]\s?([\w]+)[.。]", body)
    thing, detail = _named(body)
    return Findings(
        colour=colour_in(answer),
        topic=_topic(body),
        thing=thing,
        detail=detail,
        opening=_opening(catchphrase[0]) if catchphrase else None,
        address=ending[1] if ending else None,
        is_fluent=_FLUENT.fullmatch(body) is not None,
        is_direct=not _ASSISTANT.search(answer) and not re.match(r"[^!！,，.。]{1,20}[:：]", answer),
        is_in_language=bool(_HAN.search(answer)) == character.chinese,
    )


def colour_in(text: str) -> str | None:
    """The first colour that a text names, in English; None if it names none."""
    found = _COLOUR.search(text)
    return _COLOUR_OF[found[0].lower()] if found else None


def review(answer: str, reference: str, character: CastMember) -> dict[str, MetricScore]:
    """The eight reviews of an answer, in published order.

    Args:
        answer: the evaluated answer.
        reference: the ground-truth answer, which is without fault.
        character: who is to be played.
    """
    found, wanted = find(answer, character), find(reference, character)
    rules = {
        "Instruction Adherence": _adherence(found),
        "Fluency": ("A speaks smoothly", GOOD) if found.is_fluent else ("A stumbles", POOR),
        "Coherency": _compared("discusses", found.topic, wanted.topic),
        "Image-Text Relevance": _compared("sees", found.colour, wanted.colour),
        "Response Accuracy": _compared("answers", found.thing, wanted.thing),
        "Personality Consistency": _compared("says", found.address, wanted.address),
        "Knowledge Consistency": _compared("knows", found.detail, wanted.detail),
        "Tone Consistency": _compared("cries", found.opening, wanted.opening),
    }
    return {metric: _scored(*rules[metric]) for metric in METRICS}


def _adherence(found: Findings) -> tuple[str, int]:
    if not found.is_in_language:
        return "A speaks another language", POOR
    return ("A speaks directly", GOOD) if found.is_direct else ("A does not speak directly", POOR)


def _compared(verb: str, found: str | None, wanted: str | None) -> tuple[str, int]:
    """What answer and reference say. To say something else is worse than to say nothing."""
    finding = f"A {verb} {found or 'nothing'}, B {verb} {wanted or 'nothing'}"
    if found == wanted:
        return finding, GOOD
    return finding, POOR if found else FAIR


def _scored(finding: str, score: int) -> MetricScore:
    return MetricScore(f"{finding}, [Scores]: ({score}, {GOOD})", (float(score), float(GOOD)))


def _opening(catchphrase: str) -> str:
    """ "Salt" of "Salt and thunder!", "清风" of "清风明月！"."""
    return catchphrase[:2] if _HAN.match(catchphrase) else catchphrase.rstrip("!").split()[0]


def _named(body: str) -> tuple[str | None, str | None]:
    """The thing and the detail that an answer names."""
    if scene := _SCENE.search(body):
        return scene["thing"] or scene["chinese_thing"], scene["detail"] or scene["chinese_detail"]
    fact = _FACT.search(body) or _QUESTION.search(body)
    thing = next(filter(None, fact.groups())) if fact else None
    return thing, thing


def _topic(body: str) -> str | None:
    for topic, starts in _STARTS.items():
        if any(start in body for start in starts):
            return topic
    if colour_in(body) is not None:
        return "picture"
    return "question" if body.endswith(("?", "？")) else None
