"""Image features, computed once for each distinct image while requests need them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource
from mmrole.qwen_vl import QWenLMHeadModel
from mmrole.qwen_vl.image_processing import preprocess
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE


@dataclass
class _Entry:
    source: ImageSource
    users: int = 0
    pixels: Future[Tensor] | None = None
    features: Tensor | None = None


class ImageFeatures:
    """Numbers images, reads files ahead in threads, and keeps features until the last user has let go.

    The image key of feature row i of image number n is 256 * n + i.
    """

    def __init__(self, model: QWenLMHeadModel) -> None:
        self.model = model
        self.encoded = 0
        self._numbers: dict[Path | ImageFile | int, int] = {}
        self._next_number = itertools.count()
        self._entries: dict[int, _Entry] = {}
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="image")

    def acquire(self, source: ImageSource) -> int:
        """The number of an image, which is kept until it has been released as often as acquired."""
        identity = _identity(source)
        if identity not in self._numbers:
            self._numbers[identity] = next(self._next_number)
        number = self._numbers[identity]
        self._entries.setdefault(number, _Entry(source)).users += 1
        return number

    def release(self, number: int) -> None:
        """One user less; nothing is kept for an image without users."""
        entry = self._entries[number]
        entry.users -= 1
        if entry.users == 0:
            del self._entries[self._numbers.pop(_identity(entry.source))]

    @staticmethod
    def keys(number: int) -> np.ndarray:
        """The image keys of an image's feature rows, [256]."""
        return number * FEATURES_PER_IMAGE + np.arange(FEATURES_PER_IMAGE)

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """Starts reading and resizing images that will be needed soon."""
        for number in numbers:
            entry = self._entries[number]
            if entry.pixels is None and entry.features is None:
                size = self.model.config.visual["image_size"]
                entry.pixels = self._readers.submit(_read, entry.source, size)

    @torch.inference_mode()
    def rows(self, image_keys: np.ndarray) -> Tensor:
        """Features [n, hidden_size] at image keys [n]; encodes what has not been encoded yet."""
        numbers = np.unique(image_keys // FEATURES_PER_IMAGE).tolist()
        self.read_ahead(numbers)
        for number in numbers:
            entry = self._entries[number]
            if entry.features is None:
                pixels = entry.pixels.result().to(self.model.device)
                entry.features, entry.pixels = self.model.get_image_features(pixels)[0], None
                self.encoded += 1
        places = np.searchsorted(numbers, image_keys // FEATURES_PER_IMAGE) * FEATURES_PER_IMAGE
        features = torch.cat([self._entries[number].features for number in numbers])
        return features[torch.from_numpy(places + image_keys % FEATURES_PER_IMAGE).to(features.device)]

    def close(self) -> None:
        """Ends the reading threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def _read(source: ImageSource, size: int) -> Tensor:
    return preprocess([source.open() if isinstance(source, ImageFile) else source], size)


def _identity(source: ImageSource) -> Path | ImageFile | int:
    # As long as an entry holds a picture, its id cannot become another picture's.
    return id(source) if isinstance(source, Image.Image) else source
