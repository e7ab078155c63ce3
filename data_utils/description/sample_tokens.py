"""Token counts of training samples as the model reads them; text that samples repeat is encoded once."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrole.base.errors import UserError
from mmrole.base.json_values import JsonObject
from mmrole.data.messages import Message
from mmrole.models.encoding import encode_chat, text_encoder
from mmrole.prompt_tree import TokenSequence
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.tokenization import QWenTokenizer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE


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
        self._tokenizer, self._encode_text = tokenizer, text_encoder(tokenizer)

    def encode(self, sample: JsonObject) -> tuple[TokenSequence, TokenCounts]:
        """A test sample's sequence and its lengths.

        Sequences of one dialogue share its image; those of different dialogues must not be merged by its keys.
        """
        question, answer = (turn["value"] for turn in sample["conversations"])
        messages = [Message("user", (Path(), question)), Message("assistant", (answer,))]
        chat = encode_chat(self._tokenizer, messages, answer=False, encode_text=self._encode_text)
        (start, *_), (*_, (reply, _), (end, _)) = *chat.images, chat.learned
        ids = np.array(chat.input_ids, dtype=np.int32)
        keys = image_keys(ids.size, [ImagePlace([(start, start + FEATURES_PER_IMAGE)], 0)])
        return TokenSequence(ids, keys), TokenCounts(ids.size - reply - end, reply, ids.size)


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
