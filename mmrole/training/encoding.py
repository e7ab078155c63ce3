"""Training samples to token ids and loss positions, cut where they are too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrole.data.messages import Message
from mmrole.models.families import EncodedImage, Family
from mmrole.prompt_tree import TokenSequence
from mmrole.prompt_tree.image_keys import ImagePlace, image_keys
from mmrole.training.samples import TrainingSample

PUBLISHED_SYSTEM = "You are a helpful assistant."
"""The system message of every sample in the published recipe."""


class ImageRows(NamedTuple):
    """The positions of an image (`EncodedImage.spans`), its number, its file, and what else `EncodedImage` says."""

    spans: tuple[tuple[int, int], ...]
    number: int
    file: Path
    grid: tuple[int, int] | None = None
    among_others: bool = False

    @property
    def rows(self) -> int:
        """How many positions take a row of its features."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, eq=False, slots=True)
class EncodedSample:
    """A sample as the model reads it.

    Attributes:
        input_ids: [length] int32; at positions of images the ids say nothing.
        targets: [length] bool, the loss positions (labels ≠ -100 of the published trainer, before the shift).
        images: in order.
        is_cut: whether it was longer than the maximum.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    images: tuple[ImageRows, ...]
    is_cut: bool

    def __len__(self) -> int:
        return self.input_ids.size

    @property
    def teaches(self) -> bool:
        """Whether it has a loss position; the first one is never predicted."""
        return bool(self.targets[1:].any())

    def sequence(self) -> TokenSequence:
        """The sample for a prompt tree."""
        places = [ImagePlace(image.spans, image.number) for image in self.images]
        return TokenSequence(self.input_ids, image_keys(self.input_ids.size, places), self.targets)


class SampleEncoder:
    """Encodes samples; equal images that are read alike get the same number.

    Args:
        family: of the model.
        max_length: most positions of a sample; what is longer is cut from the right, as published, but before a picture
            that the cut would go through.
        system_message: of every sample; None for each sample's own, or else the
            family's.
    """

    def __init__(self, family: Family, max_length: int, system_message: str | None = PUBLISHED_SYSTEM) -> None:
        self.family, self.max_length, self.system_message = family, max_length, system_message
        self._numbers: dict[tuple[Path, bool], int] = {}

    def encode(self, sample: TrainingSample) -> EncodedSample:
        """Encodes one sample."""
        system = sample.system if self.system_message is None else self.system_message
        opening = [] if system is None else [Message("system", (system,))]
        encoded = self.family.encode([*opening, *sample.turns], for_training=True)
        length = self._length(encoded.input_ids.size, encoded.images)
        images = [self._rows(image) for image in encoded.images]
        kept = tuple(rows for rows, image in zip(images, encoded.images, strict=True) if image.stop <= length)
        is_cut = length < encoded.input_ids.size
        return EncodedSample(encoded.input_ids[:length], encoded.targets[:length], kept, is_cut)

    def encode_all(self, samples: Iterable[TrainingSample]) -> Iterator[EncodedSample]:
        """Encodes samples one after the other, about 4,000 a second."""
        return map(self.encode, samples)

    def _rows(self, image: EncodedImage) -> ImageRows:
        number = self._numbers.setdefault((image.image, image.among_others), len(self._numbers))
        return ImageRows(image.spans, number, image.image, image.grid, image.among_others)

    def _length(self, length: int, images: Sequence[EncodedImage]) -> int:
        """Where to cut a sample."""
        if length <= self.max_length:
            return length
        for image in images:
            if image.spans[0][0] <= self.max_length < image.stop:
                return image.label_start
        return self.max_length
