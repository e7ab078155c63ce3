"""Counts the tokens of chats as training and inference encode them; text that samples repeat is encoded once."""

import os
from collections.abc import Iterable
from functools import lru_cache

from data_utils.checks.surroundings import Lengths
from data_utils.description.sample_tokens import load_tokenizer
from mmrole.data.pictures import Picture
from mmrole.models.encoding import LINE_STARTS
from mmrole.qwen_vl.message_encoding import encode_message
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE


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
    def frame(speaker: str) -> int:
        """A message without content, and the newline after it."""
        return len(encode_message(tokenizer, speaker, [])) + 1

    def size(part: str | Picture) -> int:
        if isinstance(part, Picture):
            return line(part.label) + FEATURES_PER_IMAGE + 2
        return sum(map(line, LINE_STARTS.split(part)))

    def tokens(chat: Iterable[tuple[str, Iterable[str | Picture]]]) -> int:
        return sum(frame(speaker) + sum(map(size, content)) for speaker, content in chat)

    return Lengths(tokens, most)
