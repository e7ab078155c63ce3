"""Training samples to token ids and loss positions, as the published trainer encodes them (spec §7)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrole.prompt_tree import TokenSequence
from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM
from mmrole.qwen_vl.tokenization import QWenTokenizer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE
from mmrole.training.samples import TrainingSample, TrainingTurn

# No token of Qwen reaches over a line break to a character that is not white space, so lines can be encoded alone:
# profiles, tasks and histories repeat from sample to sample.
_LINE_STARTS = re.compile(r"(?<=[\r\n])(?=\S)")


class ImageRows(NamedTuple):
    """The 256 positions of an image: the first one's index, and the image's number and file."""

    start: int
    number: int
    file: Path


@dataclass(frozen=True, eq=False, slots=True)
class EncodedSample:
    """A sample as the model reads it.

    Attributes:
        input_ids: [length] int32; positions of images hold `<imgpad>`.
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

    def sequence(self) -> TokenSequence:
        """The sample for a prompt tree; row i of an image has the key 256 * number + i."""
        image_keys = None
        if self.images:
            image_keys = np.full(self.input_ids.size, -1, dtype=np.int64)
            for start, number, _ in self.images:
                image_keys[start : start + FEATURES_PER_IMAGE] = np.arange(FEATURES_PER_IMAGE) + (
                    number * FEATURES_PER_IMAGE
                )
        return TokenSequence(self.input_ids, image_keys, self.targets)


class SampleEncoder:
    """Encodes samples; lines that samples repeat are tokenized once, and equal images get the same number.

    Args:
        tokenizer: of the model.
        max_length: most positions of a sample; what is longer is cut from the right, as published, but before a picture
            that the cut would go through.
        system_message: of every sample, as the published recipe has it; None for each sample's own, where it has one.
    """

    def __init__(self, tokenizer: QWenTokenizer, max_length: int, system_message: str | None = DEFAULT_SYSTEM) -> None:
        self.tokenizer, self.max_length, self.system_message = tokenizer, max_length, system_message
        self._newline = tokenizer.encode_ordinary("\n")
        self._numbers: dict[Path, int] = {}
        self._line = lru_cache(1 << 17)(lambda line: np.array(tokenizer.encode_ordinary(line), dtype=np.int32))
        self._head = lru_cache(lambda role: _frozen([*tokenizer.encode_ordinary(role), *self._newline]))
        self._picture = lru_cache(self._encode_picture)
        self._start = _frozen([tokenizer.im_start_id])
        self._end = _frozen([tokenizer.im_end_id, *self._newline])

    def encode(self, sample: TrainingSample) -> EncodedSample:
        """Encodes one sample.

        System message, then the turns, each `<|im_start|>role`, newline, content, `<|im_end|>`, newline. The loss lies
        on the frame's special tokens and the newline at the end of every turn, and on the assistant's text.
        """
        parts = _Parts()
        system = self.system_message
        if system is None:
            system = DEFAULT_SYSTEM if sample.system is None else sample.system
        for turn in (TrainingTurn("system", (system,)), *sample.turns):
            parts.add(self._start, True)
            parts.add(self._head(turn.speaker), False)
            self._add_content(parts, turn)
            parts.add(self._end, True)
        input_ids = np.concatenate(parts.ids)
        targets = np.repeat(parts.learned, [part.size for part in parts.ids])
        length = self._length(input_ids.size, parts.pictures)
        images = tuple(picture.rows for picture in parts.pictures if picture.stop <= length)
        return EncodedSample(input_ids[:length], targets[:length], images, length < input_ids.size)

    def encode_all(self, samples: Iterable[TrainingSample]) -> Iterator[EncodedSample]:
        """Encodes samples one after the other, about 4,000 a second."""
        return map(self.encode, samples)

    def _add_content(self, parts: _Parts, turn: TrainingTurn) -> None:
        for part in turn.content:
            if isinstance(part, str):
                for line in filter(None, _LINE_STARTS.split(part)):
                    parts.add(self._line(line), turn.speaker == "assistant")
            else:
                start = parts.length
                parts.add(self._picture(part.label), False)
                first_row = parts.length - FEATURES_PER_IMAGE - 1
                rows = ImageRows(first_row, self._numbers.setdefault(part.file, len(self._numbers)), part.file)
                parts.pictures.append(_PictureSpan(start, parts.length, rows))

    def _encode_picture(self, label: str) -> np.ndarray:
        """Ids of a picture, from its label to `</img>`."""
        tokenizer = self.tokenizer
        rows = [tokenizer.img_pad_id] * FEATURES_PER_IMAGE
        return _frozen([*tokenizer.encode_ordinary(label), tokenizer.img_start_id, *rows, tokenizer.img_end_id])

    def _length(self, length: int, pictures: list[_PictureSpan]) -> int:
        """Where to cut a sample."""
        if length <= self.max_length:
            return length
        for picture in pictures:
            if picture.rows.start <= self.max_length < picture.stop:
                return picture.start
        return self.max_length


class _PictureSpan(NamedTuple):
    """A picture's label and rows: positions start … stop - 1, up to `</img>`."""

    start: int
    stop: int
    rows: ImageRows


class _Parts:
    """Pieces of a sample, and which of them are learned."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.learned: list[bool] = []
        self.pictures: list[_PictureSpan] = []
        self.length = 0

    def add(self, ids: np.ndarray, learned: bool) -> None:
        self.ids.append(ids)
        self.learned.append(learned)
        self.length += ids.size


def _frozen(ids: Iterable[int]) -> np.ndarray:
    array = np.array(ids, dtype=np.int32)
    array.flags.writeable = False
    return array
