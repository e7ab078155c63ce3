"""How long prompt and reply may be together, and what is done with prompts that are longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmrole.data.messages import Message, Quotation
from mmrole.data.requests import ChatRequest
from mmrole.models.encoding import encode_chat, set_quotations_apart

if TYPE_CHECKING:
    from mmrole.qwen_vl import QWenTokenizer

# More than role, line breaks and special tokens of a message; than an image with its label.
_MESSAGE_POSITIONS = 12
_IMAGE_POSITIONS = 280


@dataclass(frozen=True)
class Context:
    """The positions that a model is made for, and the tokenizer that counts them.

    Attributes:
        tokenizer: of the model.
        length: positions of prompt and reply together, `max_position_embeddings` of config.json (8,192). Dynamic NTK
            computes on beyond it, but that is neither trained nor measured.
    """

    tokenizer: QWenTokenizer
    length: int

    def excess(self, requests: Sequence[ChatRequest]) -> int:
        """Positions that the longest of these prompts and its reply have too many; 0 if all fit."""
        counts: dict[str, int] = {}  # a quotation may be megabytes long, and the same in all requests
        return max(0, *(self._positions(request, counts) - self._room(request) for request in requests))

    def cut(self, requests: Sequence[ChatRequest], excess: int) -> list[ChatRequest]:
        """The requests with a shorter beginning of their longest quotation, the same in all, so that all of them fit.

        Args:
            requests: requests that have a quotation.
            excess: of these requests, above 0.

        Raises:
            ValueError: if there is no quotation, or nothing would be left of it.
        """
        from mmrole.qwen_vl.bpe import normalize, replace_surrogates

        whole = longest_quotation(requests)
        if whole is None:
            raise ValueError("nothing is quoted")
        quoted = normalize(replace_surrogates(whole.text))  # what its tokens decode to
        cut = list(requests)

        def shorten(quotation: Quotation) -> Quotation:
            return Quotation(quoted) if quotation == whole else quotation

        while excess:
            ids = self.tokenizer.encode_ordinary(quoted)
            if excess >= len(ids):
                raise ValueError(f"{excess} positions too many, of which the quotation has {len(ids)}")
            quoted = self.tokenizer.tokenizer.decode_bytes(ids[:-excess]).decode("utf-8", "ignore")
            cut = [
                replace(request, messages=tuple(_with_quotations(message, shorten) for message in request.messages))
                for request in requests
            ]
            excess = self.excess(cut)
        return cut

    def _room(self, request: ChatRequest) -> int:
        return self.length - request.complete_settings().max_new_tokens

    def _positions(self, request: ChatRequest, counts: dict[str, int]) -> int:
        """Positions of a prompt; where it surely fits, not fewer. Counts each quotation once."""
        messages = [Message(role, tuple(set_quotations_apart(content))) for role, content in request.messages]
        most = _most_positions(messages, self._room(request))
        if most is not None:
            return most
        quotations = [part for message in messages for part in message.content if isinstance(part, Quotation)]
        for quotation in quotations:
            if quotation.text not in counts:
                counts[quotation.text] = len(self.tokenizer.encode_ordinary(quotation.text))
        frame = [_with_quotations(message, lambda part: Quotation("")) for message in messages]
        positions = len(encode_chat(self.tokenizer, frame).input_ids)
        return positions + sum(counts[quotation.text] for quotation in quotations)


def longest_quotation(requests: Sequence[ChatRequest]) -> Quotation | None:
    """The longest of their quotations that can be cut, if there is any."""
    parts = (part for request in requests for message in request.messages for part in message.content)
    quotations = (part for part in parts if isinstance(part, Quotation) and part.apart)
    return max(quotations, key=lambda quotation: len(quotation.text), default=None)


def _most_positions(messages: Sequence[Message], room: int) -> int | None:
    """Positions that the prompt cannot exceed, if they fit: its bytes are few enough, as those of most prompts are."""
    from mmrole.qwen_vl.bpe import normalize

    images = sum(len(message.images) for message in messages)
    frame = _MESSAGE_POSITIONS * (len(messages) + 2) + _IMAGE_POSITIONS * images  # a system message and the opening
    if frame + sum(len(message.text) for message in messages) > room:
        return None
    texts = [part.text if isinstance(part, Quotation) else part for message in messages for part in message.content]
    # No token is less than a byte.
    most = frame + sum(len(normalize(text).encode("utf-8", "surrogatepass")) for text in texts if isinstance(text, str))
    return most if most <= room else None


def _with_quotations(message: Message, change: Callable[[Quotation], Quotation]) -> Message:
    return Message(
        message.role, tuple(change(part) if isinstance(part, Quotation) else part for part in message.content)
    )
