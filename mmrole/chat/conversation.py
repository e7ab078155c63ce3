"""A talk between a person and a character about an image, one streamed reply after the other."""

from __future__ import annotations

import itertools
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from mmrole.backends.backend import Generator, Note, stream
from mmrole.base.errors import UserError
from mmrole.data.messages import Message, one_turn
from mmrole.data.profiles import Character
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER, ROLE_PLAY_SYSTEM, role_play_prompt
from mmrole.data.requests import ChatReply, ChatRequest, Piece

if TYPE_CHECKING:
    from PIL import Image

Fit: TypeAlias = Callable[[Sequence[ChatRequest]], tuple[list[ChatRequest], list[Note]]]

_ENDS = {"refused": "was refused", "failed": "failed"}


class TalkTooLongError(UserError):
    """The talk, with room for a reply, has more positions than the model is made for."""


class ReplyError(UserError):
    """There is no reply: what answers has failed, perhaps half-way, or declines."""


class Responder:
    """An open backend that answers in talks, one reply at a time.

    Args:
        fit: that of the backend.
        generator: what it is when it is open.
    """

    def __init__(self, fit: Fit, generator: Generator) -> None:
        self._fit = fit
        self._generator = generator
        self._numbers = itertools.count(1)

    def stream(self, messages: tuple[Message, ...]) -> Iterator[Piece | ChatReply]:
        """The pieces of a reply, and at last the reply. Its request is named by its number, from 1.

        Raises:
            TalkTooLongError, ReplyError, UserError: as `Conversation.reply`.
        """
        (request,), notes = self._fit([ChatRequest(str(next(self._numbers)), messages)])
        for note in notes:
            if note.kind != "cut":
                raise TalkTooLongError(f"the talk is too long: {note.text} into {note.room}")
        try:
            yield from stream(self._generator, request)
        except UserError:
            raise
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            raise ReplyError(f"the reply failed: {type(error).__name__}: {text}") from error


@dataclass
class Conversation:
    """What was said so far. Each request tells the whole history, as the published prompts do: it is one user turn.

    Attributes:
        character: who answers.
        image: what the talk is about; None for a talk about nothing to see.
        history: (speaker, words), oldest first.
    """

    character: Character
    image: Image.Image | None = None
    history: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, words: str) -> str:
        """The user turn that asks for a reply to these words."""
        return role_play_prompt(
            role=self.character.name,
            series=self.character.series,
            other_role=HUMAN_PARTNER,
            profiles={self.character.name: self.character.profile},
            history=self.history,
            last_utterance=words,
        )

    def reply(self, responder: Responder, words: str) -> abc.Generator[str, None, None]:
        """Streams the reply in pieces; once it is complete, question and reply are part of the history.

        A reply that is given up half-way (the iterator is closed) is not remembered.

        Raises:
            TalkTooLongError: before anything is generated.
            ReplyError: there is no reply: the model fails, for want of memory say, or declines. What was said before
                stays.
            UserError: the backend cannot answer, for another reason.
        """
        for event in responder.stream(one_turn(ROLE_PLAY_SYSTEM, self.image, self.prompt(words))):
            if isinstance(event, Piece):
                yield event.text
            elif event.error is not None:
                raise ReplyError(f"there is no reply, it {_ENDS[event.finish_reason]}: {event.error}")
            else:
                self.history += [(HUMAN_SPEAKER, words), (self.character.name, event.text)]
