"""Counts the tokens of chats as training and inference encode them; text that samples repeat is encoded once."""

import os
from collections.abc import Iterable
from functools import lru_cache

from data_utils.checks.context import Lengths
from data_utils.sample_tokens import LINE_STARTS, load_tokenizer
from mmrole.qwen_vl.chat_format import encode_message


def load_lengths(place: str | os.PathLike, most: int) -> Lengths:
    """Loads a tokenizer, and limits the length of samples.

    Args:
        place: a checkpoint directory, or a vocabulary file `qwen.tiktoken`.
        most: the most tokens that a sample may have.

    Raises:
        UserError: there is no such vocabulary, or it is damaged.
    """
    tokenizer = load_tokenizer(place)

    @lru_cache(1 << 16)
    def line(text: str) -> int:
        return len(tokenizer.encode_ordinary(text))

    @lru_cache
    def frame(speaker: str, images: int) -> int:
        """A message without text, and the newline after it."""
        return len(encode_message(tokenizer, speaker, "", images)) + 1

    def message(speaker: str, text: str, images: int) -> int:
        if images:  # the newline after an image is encoded with what follows, and was counted with the frame
            return frame(speaker, images) - 1 + sum(map(line, LINE_STARTS.split("\n" + text)))
        return frame(speaker, 0) + sum(map(line, LINE_STARTS.split(text)))

    def tokens(chat: Iterable[tuple[str, str, int]]) -> int:
        return sum(message(*part) for part in chat)

    return Lengths(tokens, most)
