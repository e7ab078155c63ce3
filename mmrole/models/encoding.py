"""Chats as token ids, each quotation tokenized apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mmrole.data.messages import LabelledImage, Message, Part, Quotation

if TYPE_CHECKING:
    from mmrole.qwen_vl import QWenTokenizer
    from mmrole.qwen_vl.message_encoding import EncodedChat

# Where a text can be cut and tokenized piece by piece: no token of Qwen reaches over a line break to a character that
# is not white space.
_LINE_STARTS = re.compile(r"(?<=[\r\n])(?=\S)")


def encode_chat(
    tokenizer: QWenTokenizer,
    messages: Sequence[Message],
    *,
    answer: bool = True,
    encode_text: Callable[[str], Sequence[int]] | None = None,
) -> EncodedChat:
    """Token ids of a chat, up to where the answer to its last turn begins.

    Whatever a quotation says, the ids of the rest are the same. Where it does not begin with a line break and text
    follows, the ids are those of the texts as one: no token of the vocabulary's pattern (spec §5.2) begins inside a run
    of line breaks or goes on behind one.

    Args:
        tokenizer: of the model.
        messages: those of a request; without a system message the model's own default comes first.
        answer: false for a sample to learn from, in which the last turn has its answer.
        encode_text: does what `tokenizer.encode_ordinary` does, faster perhaps.
    """
    from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM
    from mmrole.qwen_vl.message_encoding import InlineImage, encode_messages

    if messages[0].role != "system":
        messages = [Message("system", (DEFAULT_SYSTEM,)), *messages]

    def plain(part: Part) -> str | InlineImage:
        if isinstance(part, Quotation):
            return part.text
        if isinstance(part, LabelledImage):
            return InlineImage(*part)
        return part if isinstance(part, str) else InlineImage(part)

    contents = ((role, list(map(plain, set_quotations_apart(content)))) for role, content in messages)
    return encode_messages(tokenizer, contents, answer=answer, encode_text=encode_text)


def text_encoder(tokenizer: QWenTokenizer) -> Callable[[str], list[int]]:
    """Does what `tokenizer.encode_ordinary` does; a line of profiles, tasks and histories, which repeat from chat to
    chat, is tokenized once."""
    encode_line = lru_cache(1 << 17)(tokenizer.encode_ordinary)

    def encode_text(text: str) -> list[int]:
        return [id_ for line in _LINE_STARTS.split(text) for id_ in encode_line(line)]

    return encode_text


def set_quotations_apart(content: Sequence[Part]) -> list[Part]:
    """A message's content as it is tokenized, part by part.

    Texts that follow each other are one. A quotation has a text, be it empty, on either side of it, and takes the line
    breaks that follow it.
    """
    parts: list[Part] = []
    for given in content:
        part = given.text if isinstance(given, Quotation) and not given.apart else given
        last = parts[-1] if parts else None
        if isinstance(part, Quotation):
            parts += [part, ""] if isinstance(last, str) else ["", part, ""]
        elif isinstance(part, str) and isinstance(last, str):
            parts[-1] = last + part
        else:
            parts.append(part)
        if len(parts) > 1 and isinstance(parts[-1], str) and isinstance(parts[-2], Quotation):
            text = parts[-1].lstrip("\r\n")
            breaks = parts[-1][: len(parts[-1]) - len(text)]
            parts[-2:] = Quotation(parts[-2].text + breaks), text
    return parts
