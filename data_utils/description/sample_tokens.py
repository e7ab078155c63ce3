"""Token counts of training samples as the model reads them; text that samples repeat is encoded once."""

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrole.base.errors import UserError
from mmrole.base.json_values import JsonObject
from mmrole.models.encoding import LINE_STARTS
from mmrole.prompt_tree import TokenSequence
from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.message_encoding import InlineImage, encode_message
from mmrole.qwen_vl.tokenization import QWenTokenizer


class TokenCounts(NamedTuple):
    """What one sample holds."""

    prompt: int
    """Positions before the reply: system message, image, user turn and the frame around them."""
    reply: int
    """Tokens of the reply itself."""
    total: int
    """Positions of the whole training sample, up to the newline after the reply's end."""


class SampleTokens:
    """Encodes samples as the published trainer does: a fixed system message, one image, one user turn, the reply."""

    def __init__(self, tokenizer: QWenTokenizer) -> None:
        newline = tokenizer.encode_ordinary("\n")
        start = [tokenizer.im_start_id]
        opening = [*encode_message(tokenizer, "system", [DEFAULT_SYSTEM]), *newline]
        # A user turn up to its image: the newline after it is encoded with the text, the end of the turn comes last.
        image = encode_message(tokenizer, "user", [InlineImage(None)])[: -1 - len(newline)]
        answer = [tokenizer.im_end_id, *newline, *start, *tokenizer.encode_ordinary("assistant"), *newline]
        self._head = np.array([*opening, *image], dtype=np.int32)
        self._between = np.array(answer, dtype=np.int32)
        self._end = np.array([tokenizer.im_end_id, *newline], dtype=np.int32)
        self._image_keys = np.where(self._head == tokenizer.img_pad_id, np.arange(self._head.size), -1)
        self._line = lru_cache(1 << 16)(lambda line: np.array(tokenizer.encode_ordinary(line), dtype=np.int32))

    def encode(self, sample: JsonObject) -> tuple[TokenSequence, TokenCounts]:
        """A test sample's sequence, image positions keyed by their row, and its lengths.

        Sequences of one dialogue share its image; those of different dialogues must not be merged by these keys.
        """
        question, answer = (turn["value"] for turn in sample["conversations"])
        prompt, reply = [self._head, *self._text("\n" + question), self._between], self._text(answer)
        ids = np.concatenate([*prompt, *reply, self._end])
        image_keys = np.full(ids.size, -1)
        image_keys[: self._head.size] = self._image_keys
        counts = TokenCounts(sum(part.size for part in prompt), sum(part.size for part in reply), ids.size)
        return TokenSequence(ids, image_keys), counts

    def _text(self, text: str) -> list[np.ndarray]:
        return [self._line(line) for line in LINE_STARTS.split(text)]


def load_tokenizer(place: str | os.PathLike) -> QWenTokenizer:
    """The tokenizer of a checkpoint directory, or of a vocabulary file `qwen.tiktoken`.

    Raises:
        UserError: there is no such vocabulary, or it is damaged.
    """
    path = Path(place)
    try:
        return QWenTokenizer(path / "qwen.tiktoken" if path.is_dir() else path)
    except CheckpointError as error:
        raise UserError(f"--tokenizer: {error}") from None
