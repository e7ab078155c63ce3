"""Token counts of training samples as the model reads them; text that samples repeat is encoded once."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_utils.vocabularies import reply_length, training_system
from mmrole.base.json_values import JsonObject
from mmrole.data.messages import Message
from mmrole.models.families import Family
from mmrole.prompt_tree import TokenSequence
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys


class TokenCounts(NamedTuple):
    """What one sample holds."""

    prompt: int
    """Positions before the reply: system message, image, user turn and the frame around them."""
    reply: int
    """Tokens of the reply itself."""
    total: int
    """Positions of the whole training sample, up to what follows the reply's end."""


class SampleTokens:
    """Encodes samples as the recipes do: system message, one image, one user turn, the reply.

    Args:
        family: of the tokenizer.
        find_image: the file of an image that a sample names; None where its tokens are not counted.
    """

    def __init__(self, family: Family, find_image: Callable[[str], Path | None]) -> None:
        self._family, self._find_image, self._system = family, find_image, training_system(family)

    def encode(self, sample: JsonObject) -> tuple[TokenSequence, TokenCounts]:
        """A test sample's sequence and its lengths.

        Sequences of one dialogue share its image; those of different dialogues must not be merged by its keys.
        """
        question, answer = (turn["value"] for turn in sample["conversations"])
        image = self._find_image(sample["image"])
        asked = (question,) if image is None else (image, question)
        system = sample["system"] if self._system is None else self._system
        messages = [Message("system", (system,)), Message("user", asked), Message("assistant", (answer,))]
        ids, targets, images = self._family.encode(messages, for_training=True)
        start, reply = reply_length(self._family, ids, targets)
        keys = image_keys(ids.size, [ImagePlace(image.spans, 0) for image in images])
        return TokenSequence(ids, keys), TokenCounts(start, reply, ids.size)
