"""How long prompt and reply may be together, and what is done with prompts that are longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mmrole.data.messages import Message, Quotation
from mmrole.data.requests import ChatRequest


class PromptLengths(Protocol):
    """How many positions prompts take with a model."""

    def most_positions(self, messages: Sequence[Message]) -> int:
        """Positions that a prompt cannot exceed, quickly counted."""
        ...

    def positions(self, messages: Sequence[Message]) -> int:
        """Positions of a prompt."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def shortened(self, text: str, tokens: int) -> str:
        """A text as the model reads it, without so many of its last tokens, or a few more."""
        ...


@dataclass(frozen=True)
class Context:
    """The positions that a model is made for.

    Attributes:
        lengths: counts prompts.
        length: positions of prompt and reply together, `max_position_embeddings` of config.json (8,192 with Qwen-VL,
            whose dynamic NTK computes on beyond it, but that is neither trained nor measured).
    """

    lengths: PromptLengths
    length: int

    def excess(self, requests: Sequence[ChatRequest]) -> int:
        """Positions that the longest of these prompts and its reply have too many; 0 if all fit."""
        return max(0, *(self._positions(request) - self._room(request) for request in requests))

    def cut(self, requests: Sequence[ChatRequest], excess: int) -> list[ChatRequest]:
        """The requests with a shorter beginning of their longest quotation, the same in all, so that all of them fit.

        Args:
            requests: requests that have a quotation.
            excess: of these requests, above 0.

        Raises:
            ValueError: if there is no quotation, or nothing would be left of it.
        """
        whole = longest_quotation(requests)
        if whole is None:
            raise ValueError("nothing is quoted")
        quoted = whole.text
        cut = list(requests)

        def shorten(quotation: Quotation) -> Quotation:
            return Quotation(quoted) if quotation == whole else quotation

        while excess:
            tokens = self.lengths.count(quoted)
            if excess >= tokens:
                raise ValueError(f"{excess} positions too many, of which the quotation has {tokens}")
            quoted = self.lengths.shortened(quoted, excess)
            cut = [
                replace(request, messages=tuple(_with_quotations(message, shorten) for message in request.messages))
                for request in requests
            ]
            excess = self.excess(cut)
        return cut

    def _room(self, request: ChatRequest) -> int:
        return self.length - request.complete_settings().max_new_tokens

    def _positions(self, request: ChatRequest) -> int:
        """Positions of a prompt; where it surely fits, not fewer."""
        most = self.lengths.most_positions(request.messages)
        return most if most <= self._room(request) else self.lengths.positions(request.messages)


def longest_quotation(requests: Sequence[ChatRequest]) -> Quotation | None:
    """The longest of their quotations that can be cut, if there is any."""
    parts = (part for request in requests for message in request.messages for part in message.content)
    quotations = (part for part in parts if isinstance(part, Quotation) and part.apart)
    return max(quotations, key=lambda quotation: len(quotation.text), default=None)


def _with_quotations(message: Message, change: Callable[[Quotation], Quotation]) -> Message:
    return Message(
        message.role, tuple(change(part) if isinstance(part, Quotation) else part for part in message.content)
    )
