"""Processor: requests and images to the model's inputs (token ids, pixels, the image feature of each position)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import BatchFeature

from mmrole.base.paths import resolve_below
from mmrole.qwen_vl.bpe import IMG_END, IMG_START
from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM, ChatTurn, encode_turns, make_context
from mmrole.qwen_vl.checkpoint_files import read_config
from mmrole.qwen_vl.image_processing import ImageOrPath, preprocess
from mmrole.qwen_vl.message_encoding import EncodedChat, ImageSpan
from mmrole.qwen_vl.tokenization import QWenTokenizer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE

_IMAGE_TAG = re.compile(f"{IMG_START}(.*?){IMG_END}", re.DOTALL)


@dataclass(frozen=True)
class Chat:
    """A structured request: plain text and images, nothing of it markup (`ChatTurn.images`: PIL images or paths)."""

    turns: Sequence[ChatTurn]
    system: str = DEFAULT_SYSTEM


class QWenProcessor:
    """Turns requests into the arguments of `model.generate(**inputs)`.

        processor = QWenProcessor.from_pretrained(directory)
        inputs = processor([Chat([ChatTurn("What is it?", images=["a.jpg"])])])
        inputs = processor("Picture 1: <img>a.jpg</img>\\nWhat is it?", image_dir="images")
        inputs = processor.from_context("<img>a.jpg</img>What is it?", history=[], images={"a.jpg": image})

    Args:
        tokenizer: of the model.
        image_size: height and width, in pixels, that the vision tower takes.
    """

    def __init__(self, tokenizer: QWenTokenizer, image_size: int = 448):
        self.tokenizer = tokenizer
        self.image_size = image_size

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> Self:
        """Reads the tokenizer and `config.json` of a checkpoint directory; nothing in it is executed.

        Raises:
            CheckpointError: if the directory is not a Qwen-VL checkpoint.
        """
        config = read_config(directory)
        return cls(QWenTokenizer.from_pretrained(directory), config.visual["image_size"])

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the tokenizer's files; the image size belongs to the model's `config.json`."""
        self.tokenizer.save_pretrained(directory)

    def __call__(
        self,
        requests: str | Chat | Sequence[str | Chat],
        images: Mapping[str, ImageOrPath] | None = None,
        image_dir: str | os.PathLike[str] | None = None,
    ) -> BatchFeature:
        """Encodes one request or a batch.

        Args:
            requests: structured requests, or texts with markup, encoded as `tokenizer(text)` does: every special token
                in them counts, and `<img>path</img>`, with a path of any length, names an image. Never pass other
                people's text as markup.
            images: images of the markup by their path in it.
            image_dir: folder in which paths of the markup are looked up. Without it the markup opens no file.

        Returns:
            `input_ids` and `attention_mask`, int64 [batch, positions], padded on the left. If there are images:
            `pixel_values`, float32 [distinct images, 3, size, size], and `image_positions`, int64 [batch, positions]:
            at a position that takes an image feature the row of that feature, when those of all images (256 each) are
            laid one after the other; -1 everywhere else. One path, or one PIL object, is one image.

        Raises:
            ValueError: for markup that is not closed, and for an image that is not in `images` and may not be opened.
            OSError: if an image cannot be read, as `image_processing.load_image`.
        """
        resolve = _image_resolver(images or {}, image_dir)
        batch = [requests] if isinstance(requests, str | Chat) else requests
        return self._batch([self._encode(request, resolve) for request in batch])

    def from_context(
        self,
        query: str,
        history: Sequence[tuple[str, str | None]] | None = None,
        system: str = DEFAULT_SYSTEM,
        max_window_size: int = 6144,
        images: Mapping[str, ImageOrPath] | None = None,
        image_dir: str | os.PathLike[str] | None = None,
    ) -> BatchFeature:
        """The inputs for a chat in hand-written markup: `make_context`, with images as in a call of the processor."""
        always, paths = [], []
        system = _take_paths(system, always)
        turns = [(_take_paths(said, paths), reply and _take_paths(reply, paths)) for said, reply in history or ()]
        _, ids = make_context(self.tokenizer, _take_paths(query, paths), turns, system, max_window_size)
        # The oldest turns may have been left out, and their images with them.
        left_out = len(always) + len(paths) - ids.count(self.tokenizer.img_start_id)
        resolve = _image_resolver(images or {}, image_dir)
        return self._batch([self._locate(ids, always + paths[left_out:], resolve)])

    def decode(self, token_ids: Any, **kwargs: Any) -> str | list[str]:
        """As `QWenTokenizer.decode`."""
        return self.tokenizer.decode(token_ids, **kwargs)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """As `QWenTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(sequences, **kwargs)

    def _encode(self, request: str | Chat, resolve: Callable[[str], ImageOrPath]) -> EncodedChat:
        if isinstance(request, Chat):
            return encode_turns(self.tokenizer, request.turns, request.system)
        paths: list[str] = []
        return self._locate(self.tokenizer.encode_markup(_take_paths(request, paths)), paths, resolve)

    def _locate(self, ids: list[int], paths: list[str], resolve: Callable[[str], ImageOrPath]) -> EncodedChat:
        starts = [i + 1 for i, id_ in enumerate(ids) if id_ == self.tokenizer.img_start_id]
        return EncodedChat(ids, [ImageSpan(s, resolve(path), s - 1) for s, path in zip(starts, paths, strict=True)])

    def _batch(self, chats: Sequence[EncodedChat]) -> BatchFeature:
        shape = len(chats), max((len(chat.input_ids) for chat in chats), default=0)
        pad_id = self.tokenizer.pad_token_id
        input_ids = torch.full(shape, pad_id if isinstance(pad_id, int) else self.tokenizer.eod_id)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        image_positions = torch.full(shape, -1)
        index_of_image: dict[Any, int] = {}
        images: list[ImageOrPath] = []
        for row, chat in enumerate(chats):
            padding = shape[1] - len(chat.input_ids)
            input_ids[row, padding:] = torch.tensor(chat.input_ids)
            attention_mask[row, padding:] = 1
            for start, image, _ in chat.images:
                key = _key(image)
                if key not in index_of_image:
                    index_of_image[key] = len(images)
                    images.append(image)
                first = FEATURES_PER_IMAGE * index_of_image[key]
                features = torch.arange(first, first + FEATURES_PER_IMAGE)
                image_positions[row, padding + start : padding + start + FEATURES_PER_IMAGE] = features
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if images:
            inputs |= {"pixel_values": preprocess(images, self.image_size), "image_positions": image_positions}
        return BatchFeature(inputs)


def image_below(path: str, directory: str | os.PathLike[str]) -> Path:
    """The file that a path in other people's text means, in a directory that it cannot leave.

    Raises:
        ValueError: for a URL, and for a path that leads out of the directory: absolute, by `..`, or by a
            link to a file elsewhere.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path):
        raise ValueError(f"{path[:100]!r}: is a URL; images are opened below {directory} only")
    try:
        file = resolve_below(directory, path)
    except ValueError as error:  # a NUL character
        raise ValueError(f"{path[:100]!r}: not the path of an image ({error})") from None
    if file is None:
        raise ValueError(f"{path[:100]!r}: leads out of {directory}; images are opened below that folder only")
    return file


def _take_paths(text: str, paths: list[str]) -> str:
    # Takes the paths out of the markup: an empty span encodes as 256 times <imgpad>, whatever the length of the path.
    paths += _IMAGE_TAG.findall(text)
    return _IMAGE_TAG.sub(IMG_START + IMG_END, text)


def _image_resolver(
    images: Mapping[str, ImageOrPath], image_dir: str | os.PathLike[str] | None
) -> Callable[[str], ImageOrPath]:
    def resolve(path: str) -> ImageOrPath:
        if path in images:
            return images[path]
        if image_dir is None:
            raise ValueError(f"the markup names the image {path[:100]!r}: give images= or image_dir=")
        return image_below(path, image_dir)

    return resolve


def _key(image: ImageOrPath) -> Any:
    # What makes two images the same one: the file, or the object (alive in the batch, so its id is its own).
    return id(image) if isinstance(image, Image.Image) else Path(image).resolve()
