"""How long prompt and reply may be together, and what is done with prompts that are longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmrole.generation.requests import ChatRequest

if TYPE_CHECKING:
    from mmrole.qwen_vl import QWenTokenizer

# More than the roles, line breaks, special tokens and the image of a prompt with one turn.
_FRAME_POSITIONS = 320


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

    def excess(self, request: ChatRequest) -> int:
        """Positions that prompt and longest reply have too many; 0 if they fit."""
        from mmrole.qwen_vl.bpe import normalize
        from mmrole.qwen_vl.chat_format import ChatTurn, encode_chat

        room = self.length - request.settings.max_new_tokens
        # A token is at least a byte: most prompts need not be tokenized to know that they fit.
        size = sum(len(normalize(text).encode("utf-8", "surrogatepass")) for text in (request.system, request.text))
        if size + _FRAME_POSITIONS <= room:
            return 0
        images = () if request.image is None else (request.image,)
        turn = ChatTurn(request.text, images, quotation=request.quotation)
        return max(0, len(encode_chat(self.tokenizer, [turn], request.system).input_ids) - room)

    def cut(self, requests: Sequence[ChatRequest]) -> list[ChatRequest]:
        """Requests with the same quotation, which is cut to the same beginning so that all of them fit.

        Raises:
            ValueError: if nothing would be left of the quotation.
        """
        from mmrole.qwen_vl.bpe import normalize, replace_surrogates

        start, end = requests[0].quotation
        quoted = normalize(replace_surrogates(requests[0].text[start:end]))  # what its tokens decode to
        while excess := max(map(self.excess, requests)):
            ids = self.tokenizer.encode_ordinary(quoted)
            if excess >= len(ids):
                raise ValueError(f"{excess} positions too many, of which the quotation has {len(ids)}")
            quoted = self.tokenizer.tokenizer.decode_bytes(ids[:-excess]).decode("utf-8", "ignore")
            requests = [_with_quotation(request, quoted) for request in requests]
        return list(requests)


def _with_quotation(request: ChatRequest, quoted: str) -> ChatRequest:
    start, end = request.quotation
    text = request.text[:start] + quoted + request.text[end:]
    return replace(request, text=text, quotation=(start, start + len(quoted)))
