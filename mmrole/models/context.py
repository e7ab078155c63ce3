"""How long prompt and reply may be together, and what is done with prompts that are longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmrole.data.requests import ChatRequest

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

    def excess(self, requests: Sequence[ChatRequest]) -> int:
        """Positions that the longest of these prompts and its reply have too many; 0 if all fit.

        If the requests have a quotation, it is the same in all of them.
        """
        room = self.length - requests[0].settings.max_new_tokens
        if all(_surely_fits(request, room) for request in requests):
            return 0
        quoted = 0
        if requests[0].quotation is not None:
            # It may be megabytes long: once for all. It is encoded apart, with the line breaks behind it.
            start, end = requests[0].quotation
            behind = requests[0].text[end:]
            breaks = behind[: len(behind) - len(behind.lstrip("\r\n"))]
            quoted = self._count(requests[0].text[start:end] + breaks) - self._count(breaks)
            requests = [_with_quotation(request, "") for request in requests]
        return max(0, max(map(self._positions, requests)) + quoted - room)

    def cut(self, requests: Sequence[ChatRequest], excess: int) -> list[ChatRequest]:
        """The requests with the same, shorter beginning of their quotation, so that all of them fit.

        Args:
            requests: requests with the same quotation.
            excess: of these requests, above 0.

        Raises:
            ValueError: if nothing would be left of the quotation.
        """
        from mmrole.qwen_vl.bpe import normalize, replace_surrogates

        start, end = requests[0].quotation
        quoted = normalize(replace_surrogates(requests[0].text[start:end]))  # what its tokens decode to
        while excess:
            ids = self.tokenizer.encode_ordinary(quoted)
            if excess >= len(ids):
                raise ValueError(f"{excess} positions too many, of which the quotation has {len(ids)}")
            quoted = self.tokenizer.tokenizer.decode_bytes(ids[:-excess]).decode("utf-8", "ignore")
            requests = [_with_quotation(request, quoted) for request in requests]
            excess = self.excess(requests)
        return list(requests)

    def _positions(self, request: ChatRequest) -> int:
        from mmrole.qwen_vl.chat_format import ChatTurn, encode_chat

        images = () if request.image is None else (request.image,)
        turn = ChatTurn(request.text, images, quotation=request.quotation)
        return len(encode_chat(self.tokenizer, [turn], request.system).input_ids)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode_ordinary(text))


def _surely_fits(request: ChatRequest, room: int) -> bool:
    """Whether the prompt's bytes are few enough, as those of most are: no token is less than one."""
    from mmrole.qwen_vl.bpe import normalize

    text = request.system + request.text
    if len(text) > room:
        return False
    return _FRAME_POSITIONS + len(normalize(text).encode("utf-8", "surrogatepass")) <= room


def _with_quotation(request: ChatRequest, quoted: str) -> ChatRequest:
    start, end = request.quotation
    text = request.text[:start] + quoted + request.text[end:]
    return replace(request, text=text, quotation=(start, start + len(quoted)))
