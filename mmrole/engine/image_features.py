"""Images on their way to the model: read by threads, encoded by the vision tower, kept until no prefill needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from mmrole.data.image_file import ImageFile
from mmrole.engine.images import ImageView
from mmrole.models.families import Pixels, TreeModel
from mmrole.prompt_tree.image_keys import feature_rows, images_shown

# That the vision tower of a GPU encodes at once. A CPU takes one after the other: it is as fast, and what an image
# becomes depends to the last bit on itself alone.
IMAGES_AT_ONCE = 8
READERS_FOR_CPU, READERS_FOR_GPU = 2, 8


class ImageFeatures:
    """The features of the images that waiting trees show, by the images' numbers.

    Attributes:
        encoded: images that the vision tower has read so far.
    """

    def __init__(self, model: TreeModel) -> None:
        self.encoded = 0
        self._model = model
        self._at_once = IMAGES_AT_ONCE if model.device.type == "cuda" else 1
        self._n_readers = READERS_FOR_GPU if model.device.type == "cuda" else READERS_FOR_CPU
        self._readers: ThreadPoolExecutor | None = None
        self._pixels: dict[int, Future[Pixels]] = {}
        self._features: dict[int, Tensor] = {}

    def read_ahead(self, images: Mapping[int, ImageView]) -> None:
        """Starts reading images, by number, that prefills will need soon."""
        for number, view in images.items():
            if number not in self._pixels and number not in self._features:
                if self._readers is None:
                    self._readers = ThreadPoolExecutor(self._n_readers, thread_name_prefix="image")
                self._pixels[number] = self._readers.submit(self._read, view)

    def are_readable(self, numbers: Iterable[int]) -> bool:
        """Whether these images, of which `read_ahead` knows, have been read without an error; waits for that."""
        return all(self._pixels[number].exception() is None for number in numbers if number in self._pixels)

    def forget(self, numbers: Iterable[int]) -> None:
        """Frees what is kept of images that no prefill needs any more."""
        for number in numbers:
            self._features.pop(number, None)
            if (pixels := self._pixels.pop(number, None)) is not None:
                pixels.cancel()

    def shown(self, keys: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Where nodes with these image keys [N] show images, and the features there; None where there is no image.

        Raises:
            OSError: an image cannot be read.
        """
        numbers = images_shown(keys)
        if not numbers:
            return None
        self._encode([number for number in numbers if number not in self._features])
        rows = torch.from_numpy(feature_rows(keys, {number: len(self._features[number]) for number in numbers}))
        places = (rows >= 0).nonzero()[:, 0]
        features = torch.cat([self._features[number] for number in numbers])
        return places.to(self._model.device), features[rows[places].to(features.device)]

    def close(self) -> None:
        """Ends the threads that read."""
        if self._readers is not None:
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._readers = None

    def _encode(self, numbers: Sequence[int]) -> None:
        pixels = {number: self._pixels.pop(number).result() for number in numbers}
        for _, alike in groupby(numbers, key=lambda number: _shapes(pixels[number])):
            members = list(alike)
            for start in range(0, len(members), self._at_once):
                together = members[start : start + self._at_once]
                features = self._model.image_features([pixels[number] for number in together])
                self._features.update(zip(together, features, strict=True))
                self.encoded += len(together)

    def _read(self, view: ImageView) -> Pixels:
        picture = view.source.open() if isinstance(view.source, ImageFile) else view.source
        return self._model.family.preprocess([picture], int(view.among_others))


def _shapes(pixels: Pixels) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in pixels.items()]
