"""Counts the tokens of chats as training and inference encode them; text that samples repeat is encoded once."""

import os
from collections.abc import Iterable

from data_utils.checks.surroundings import Lengths
from data_utils.description.sample_tokens import load_tokenizer
from mmrole.data.pictures import Picture
from mmrole.models.encoding import text_encoder
from mmrole.qwen_vl.message_encoding import InlineImage, encode_messages


def load_lengths(place: str | os.PathLike, most: int) -> Lengths:
    """Loads a tokenizer, and limits the length of samples.

    Args:
        place: a checkpoint directory, or a vocabulary file `qwen.tiktoken`.
        most: the most tokens that a sample may have.

    Raises:
        UserError: there is no such vocabulary, or it is damaged.
    """
    tokenizer = load_tokenizer(place)
    encode_text = text_encoder(tokenizer)

    def plain(part: str | Picture) -> str | InlineImage:
        return InlineImage(part.path, part.label) if isinstance(part, Picture) else part

    def tokens(chat: Iterable[tuple[str, Iterable[str | Picture]]]) -> int:
        messages = ((speaker, list(map(plain, content))) for speaker, content in chat)
        return len(encode_messages(tokenizer, messages, answer=False, encode_text=encode_text).input_ids)

    return Lengths(tokens, most)
