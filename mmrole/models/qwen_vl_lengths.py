"""How many positions prompts take with Qwen-VL, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mmrole.data.messages import Message, Quotation
from mmrole.models.encoding import encode_chat, set_quotations_apart

if TYPE_CHECKING:
    from mmrole.qwen_vl import QWenTokenizer

# More than role, line breaks and special tokens of a message; than an image with its label.
_MESSAGE_POSITIONS = 12
_IMAGE_POSITIONS = 280


class QwenVLLengths:
    """`PromptLengths` of Qwen-VL.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: QWenTokenizer) -> None:
        self.tokenizer = tokenizer
        # A quotation may be megabytes long, and the same in all requests of a record.
        self.count = lru_cache(16)(self._count)

    def most_positions(self, messages: Sequence[Message]) -> int:
        """Its bytes, for no token is less than one."""
        from mmrole.qwen_vl.bpe import normalize

        images = sum(len(message.images) for message in messages)
        frame = _MESSAGE_POSITIONS * (len(messages) + 2) + _IMAGE_POSITIONS * images  # a system message and the opening
        texts = [part.text if isinstance(part, Quotation) else part for message in messages for part in message.content]
        return frame + sum(
            len(normalize(text).encode("utf-8", "surrogatepass")) for text in texts if isinstance(text, str)
        )

    def positions(self, messages: Sequence[Message]) -> int:
        """Those of the frame, and of each quotation, which is tokenized apart."""
        messages = [Message(role, tuple(set_quotations_apart(content))) for role, content in messages]
        quotations = [part for message in messages for part in message.content if isinstance(part, Quotation)]
        frame = [
            Message(role, tuple(Quotation("") if isinstance(part, Quotation) else part for part in content))
            for role, content in messages
        ]
        positions = len(encode_chat(self.tokenizer, frame).input_ids)
        return positions + sum(self.count(quotation.text) for quotation in quotations)

    def shortened(self, text: str, tokens: int) -> str:
        """What the tokens decode to, in Unicode's form NFC; half a character is left out."""
        ids = self.tokenizer.encode_ordinary(text)
        return self.tokenizer.tokenizer.decode_bytes(ids[:-tokens]).decode("utf-8", "ignore")

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode_ordinary(text))
