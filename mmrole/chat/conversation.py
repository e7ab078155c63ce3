"""A talk between a person and a character about an image, one streamed reply after the other."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from mmrole.base.errors import UserError
from mmrole.data.profiles import Character
from mmrole.data.prompts import HUMAN_PARTNER, HUMAN_SPEAKER, ROLE_PLAY_SYSTEM, role_play_prompt
from mmrole.data.requests import GenerationSettings
from mmrole.qwen_vl import QWenLMHeadModel, QWenTokenizer
from mmrole.qwen_vl.chat_format import ChatTurn
from mmrole.qwen_vl.processing import Chat, QWenProcessor


class TalkTooLongError(UserError):
    """The talk, with room for a reply, has more positions than the model is made for."""


class ReplyError(UserError):
    """The model failed in the middle of a reply."""


class Speaker(NamedTuple):
    """A loaded model, and how it chooses tokens."""

    model: QWenLMHeadModel
    tokenizer: QWenTokenizer
    settings: GenerationSettings


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

    def reply(self, speaker: Speaker, words: str) -> Iterator[str]:
        """Streams the reply in pieces; once it is complete, question and reply are part of the history.

        A reply that is given up half-way (the iterator is closed) is not remembered.

        Raises:
            TalkTooLongError: before anything is generated.
            ReplyError: the model fails, for want of memory say. What was said before stays.
        """
        processor = QWenProcessor(speaker.tokenizer, speaker.model.config.visual["image_size"])
        images = () if self.image is None else (self.image,)
        inputs = processor(Chat([ChatTurn(self.prompt(words), images)], ROLE_PLAY_SYSTEM))
        length, most = inputs["input_ids"].shape[1], speaker.model.config.max_position_embeddings
        if length + speaker.settings.max_new_tokens > most:
            raise TalkTooLongError(
                f"the talk is too long: it has {length:,} positions, and a reply up to "
                f"{speaker.settings.max_new_tokens:,} of the model's {most:,}"
            )
        pieces = []
        for piece in _stream(speaker, inputs.to(speaker.model.device)):
            # Blanks before the first word are no part of an answer.
            piece = piece if pieces else piece.lstrip()
            if piece:
                pieces.append(piece)
                yield piece
        self.history += [(HUMAN_SPEAKER, words), (self.character.name, "".join(pieces).strip())]


def _stream(speaker: Speaker, inputs: dict[str, torch.Tensor]) -> Iterator[str]:
    """Generates in a thread of its own; stops when the iterator is closed."""
    model, tokenizer, settings = speaker
    tokens, given_up = _Tokens(), Event()
    chosen = {"do_sample": settings.do_sample, "repetition_penalty": settings.repetition_penalty}
    if settings.do_sample:
        chosen |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}

    def generate() -> None:
        try:
            with torch.inference_mode():
                model.generate(
                    **inputs,
                    **chosen,
                    max_new_tokens=settings.max_new_tokens,
                    eos_token_id=[tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id],
                    pad_token_id=tokenizer.eod_id,
                    stopping_criteria=[_GivenUp(given_up)],
                    streamer=tokens,
                )
        except BaseException as error:
            tokens.fail(error)
        else:
            tokens.close()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from _decoded(tokens, tokenizer)
    finally:
        given_up.set()
        thread.join()


def _decoded(tokens: Iterator[int], tokenizer: QWenTokenizer) -> Iterator[str]:
    """The text of tokens as far as its characters are whole; special tokens, `<img>` too, are left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if token < tokenizer.eod_id:
            yield decoder.decode(tokenizer.tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


class _Tokens(BaseStreamer):
    """Hands over tokens, and in the end what went wrong, from the thread that generates to the one that reads."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then token after token."""
        if not self._prompt_is_next:
            self._queue.put(value.tolist())
        self._prompt_is_next = False

    def end(self) -> None:
        """Nothing to do: generation may still fail after its last token."""

    def close(self) -> None:
        """Ends the reading."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Ends the reading with an error."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[int]:
        while (got := self._queue.get()) is not None:
            if isinstance(got, BaseException):
                text = (str(got).splitlines() or [""])[0]
                raise ReplyError(f"the reply failed: {type(got).__name__}: {text}") from got
            yield from got


class _GivenUp(StoppingCriteria):
    """Ends generation when nobody listens any more."""

    def __init__(self, given_up: Event) -> None:
        self.given_up = given_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.given_up.is_set(), device=input_ids.device)
