"""A checkpoint's chat template: the frame that it puts around the texts and images of a chat.

The template never sees what the texts say. It is rendered with marks in their places, so no text can change the frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from mmrole.base.errors import UserError

# Characters of a private area of Unicode: templates do nothing with them, and they are no white space.
_OPEN, _CLOSE = "\U000f8d00", "\U000f8d01"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

DAY = datetime(2025, 1, 1)
"""What a template is told that asks for today's date: a prompt must be the same tomorrow."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class TextShape(NamedTuple):
    """What a template sees of a text: the white space around it, which it may strip, and whether there is more."""

    before: str
    after: str
    is_blank: bool


class TurnShape(NamedTuple):
    """What a template sees of a message: who speaks, and texts and images (None) in their order."""

    role: str
    parts: tuple[TextShape | None, ...]


class FramePart(NamedTuple):
    """A piece of a frame.

    Attributes:
        text: what the template says; empty where a text of the chat goes.
        number: of the text that goes here, among those of the chat; -1 for what the template says.
        learned: whether it is a part of an answer to learn from.
    """

    text: str
    number: int
    learned: bool


def shape_of(text: str) -> TextShape:
    """What a template sees of a text."""
    core = text.strip()
    if not core:
        return TextShape(text, "", True)
    before = text[: len(text) - len(text.lstrip())]
    return TextShape(before, text[len(text.rstrip()) :], False)


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with its template.
        directory: of the checkpoint, for messages.

    Raises:
        UserError: there is none, or several and no default.
    """

    def __init__(self, tokenizer: Any, directory: Path) -> None:
        if not isinstance(tokenizer.chat_template, str | dict) or not tokenizer.chat_template:
            raise UserError(
                f"{directory} has no chat template (chat_template.jinja); give the instruction-tuned model's directory"
            )
        self._tokenizer, self._directory = tokenizer, directory
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:  # several, none of which is the default
            raise UserError(f"{directory}: {' '.join(str(error).split())}") from None
        self._template = _TODAY.sub(lambda match: repr(DAY.strftime(match.group(2))), template)
        self.frame = lru_cache(1 << 10)(self._frame)
        self.wants_strings = lru_cache(1 << 10)(self._wants_strings)

    def _frame(self, turns: tuple[TurnShape, ...], for_answer: bool) -> tuple[FramePart, ...]:
        """The frame of a chat; with `for_answer` up to where the answer to its last turn begins.

        The white space around a text is part of the frame, as far as the template leaves it. An answer to learn from
        begins where the frame up to it ends, and ends with its text.

        Raises:
            UserError: the template refuses such a chat, or leaves a text out or repeats it.
        """
        rendered = self._render(turns, for_answer)
        if for_answer:
            return tuple(_cut(rendered, [(len(rendered), False)]))
        borders, number = [], 0
        for place, turn in enumerate(turns):
            first, number = number, number + sum(part is not None for part in turn.parts)
            if turn.role == "assistant" and place:
                marks = [match for match in _MARK.finditer(rendered) if first <= int(match.group(1)) < number]
                begin = self._begin_of_answer(rendered, turns[: place + 1], first, marks)
                if begin is not None:
                    borders += [(begin, False), (max([begin, *(match.end() for match in marks)]), True)]
        return tuple(_cut(rendered, [*borders, (len(rendered), False)]))

    def _begin_of_answer(
        self, rendered: str, turns: tuple[TurnShape, ...], number: int, marks: list[re.Match[str]]
    ) -> int | None:
        """Where the answer begins that the last of these turns is; None if it is empty, and left out by the template.

        Args:
            rendered: the whole chat.
            turns: of it, up to the answer.
            number: of the answer's text.
            marks: of it; none if it is empty.
        """
        prompt = self._render(turns[:-1], True)
        if rendered.startswith(prompt):
            return len(prompt)
        if marks:
            return marks[0].start()
        said = (*turns[:-1], TurnShape(turns[-1].role, (TextShape("", "", False),)))  # as if it said something
        before = self._render(said, False).partition(f"{_OPEN}{number}{_CLOSE}")[0]
        return len(before) if rendered.startswith(before) else None

    def _render(self, turns: tuple[TurnShape, ...], for_answer: bool) -> str:
        messages, texts = _messages(turns)
        try:
            rendered = self.apply(messages, for_answer)
        except (TemplateError, TypeError) as error:
            roles = " ".join(turn.role for turn in turns)
            raise UserError(f"{self._directory}: its chat template refuses the roles {roles}: {error}") from None
        if _marks(rendered) != texts:
            raise UserError(f"{self._directory}: its chat template leaves out or repeats a message's text")
        return rendered

    def apply(self, messages: list[dict[str, Any]], for_answer: bool) -> str:
        """The text of messages as transformers takes them; with `for_answer` the next turn is begun.

        Raises:
            TemplateError, TypeError: the template refuses them.
        """
        kinds = tuple((message["role"], tuple(part["type"] for part in message["content"])) for message in messages)
        if self.wants_strings(kinds, for_answer):
            messages = [_as_string(message) for message in messages]
        return self._apply(messages, for_answer)

    def _wants_strings(self, kinds: tuple[tuple[str, tuple[str, ...]], ...], for_answer: bool) -> bool:
        """Whether messages without images must be strings: some templates refuse lists, or print them as Python does.

        Args:
            kinds: of each message, its role, and of each of its parts whether it is a text or an image.
            for_answer: as in `apply`.
        """
        written = TextShape("", "", False)
        turns = [TurnShape(role, tuple(written if part == "text" else None for part in parts)) for role, parts in kinds]
        messages, texts = _messages(turns)
        try:
            return _marks(self._apply(messages, for_answer)) != texts
        except (TemplateError, TypeError):
            return True

    def _apply(self, messages: list[dict[str, Any]], for_answer: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=for_answer
        )


def _marks(rendered: str) -> list[int]:
    """The numbers of the texts whose marks are there, in order."""
    return [int(number) for number in _MARK.findall(rendered)]


def _messages(turns: Sequence[TurnShape]) -> tuple[list[dict[str, Any]], list[int]]:
    """Messages for a template, and the numbers of the texts with a mark."""
    messages, marked, number = [], [], 0
    for turn in turns:
        content = []
        for part in turn.parts:
            if part is None:
                content.append({"type": "image"})
                continue
            mark = "" if part.is_blank else f"{_OPEN}{number}{_CLOSE}"
            marked += [] if part.is_blank else [number]
            content.append({"type": "text", "text": part.before + mark + part.after})
            number += 1
        messages.append({"role": turn.role, "content": content})
    return messages, marked


def _as_string(message: dict[str, Any]) -> dict[str, Any]:
    parts = message["content"]
    if any(part["type"] == "image" for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def _cut(rendered: str, borders: list[tuple[int, bool]]) -> Iterator[FramePart]:
    """The parts of a rendered chat.

    Args:
        rendered: with marks.
        borders: ends of stretches, ascending, and whether each is learned.
    """
    start = 0
    for stop, learned in borders:
        for place, piece in enumerate(_MARK.split(rendered[start:stop])):
            if place % 2:
                yield FramePart("", int(piece), learned)
            elif piece or (learned and start == stop):  # an empty answer, after which its end is learned
                yield FramePart(piece, -1, learned)
        start = max(start, stop)
