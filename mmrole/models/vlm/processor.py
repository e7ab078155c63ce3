"""A checkpoint's tokenizer and image processor, on Pillow: its pixels, and the placeholders that stand for an image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import (
    # This module, not the one that it comes from, adds the kinds that share a processor.
    PROCESSOR_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    processor_class_from_name,
)
from transformers.utils import logging

from mmrole.base.errors import UserError
from mmrole.base.files import read_json
from mmrole.base.pillow import FORMATS, decode
from mmrole.models.checkpoints import processor_files
from mmrole.models.families import Pixels
from mmrole.models.vlm.pixtral import PixtralProcessor
from mmrole.qwen_vl.checkpoint_files import LFS_POINTER

MOST_ASPECT = 200
"""Qwen's limit. Others would scale a thin line up until its short side is as long as theirs, in gigabytes."""

BACKEND = "pil"
"""Which of transformers' backends makes the pixels: Pillow, which needs no torchvision."""


_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "config.json")
COUNTS = "batch_num_images"
"""What image processors say beside pixels if they make others of an image that is not the only one of its chat."""


class Placeholders(NamedTuple):
    """What stands for an image in a text.

    Attributes:
        text: the tokens of all of its rows, with those that separate or frame them.
        grid: rows and columns of its features, where positions count them so (M-RoPE); else None.
    """

    text: str
    grid: tuple[int, int] | None


class VlmProcessor:
    """Tokenizer and image processor of a checkpoint, without what is for videos.

    Args:
        directory: of the checkpoint.
        config: its configuration.
        max_pixels: most pixels of an image, to which larger ones are shrunk; None for the checkpoint's own limit.

    Raises:
        UserError: a part is missing or damaged, or `max_pixels` has no effect on this processor.
    """

    def __init__(self, directory: Path, config: Any, max_pixels: int | None = None) -> None:
        self.directory, self.max_pixels = directory, max_pixels
        self._processor, self._arguments = _load(directory, config, max_pixels)
        self.tokenizer = self._processor.tokenizer
        # The processor's own, of another file, shows images; that of the tokenizer beside it may know texts only.
        self.tokenizer.chat_template = self._processor.chat_template or self.tokenizer.chat_template
        self.image_processor = self._processor.image_processor
        if not isinstance(getattr(self._processor, "image_token", None), str):
            raise UserError(
                f"{directory}: its processor has no token that stands for an image in a chat; docs/models.md lists the "
                "models that were tried"
            )
        self.image_token: str = self._processor.image_token
        """That the chat template puts where an image is."""
        self.counts_images: bool = COUNTS in self.image_processor.model_input_names
        """Whether an image is read otherwise where its chat has several."""
        self.placeholders = lru_cache(1 << 12)(self._placeholders)

    def pixels(self, pictures: Sequence[Image.Image | Path], among_others: int = 0) -> Pixels:
        """Pictures, or those in files, as the model takes them: what the image processor makes of all of them together.

        Args:
            pictures: of any chats.
            among_others: how many of them, the last, are read as some of several images of their chats; for a processor
                that `counts_images`.

        Raises:
            OSError: one cannot be read.
        """
        images = [_opened(picture) for picture in pictures]
        inputs, _ = self._processor._process_images(_by_chat(images, among_others), **self._arguments)
        pixels = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return {name: value[: len(images)] for name, value in pixels.items()} if among_others else pixels

    def _placeholders(self, size: tuple[int, int], among_others: bool = False) -> Placeholders:
        """What stands for an image of this width and height, as the processor says for a blank one.

        Args:
            size: width and height.
            among_others: see `EncodedImage`.

        Raises:
            ValueError: the image is too narrow.
            Exception: of any kind: the processor does not take such a size.
        """
        if max(size) > MOST_ASPECT * min(size):
            raise ValueError(f"one side is more than {MOST_ASPECT} times the other")
        images = _by_chat([Image.new("RGB", size)], int(among_others))
        inputs, texts = self._processor._process_images(images, **self._arguments)
        return Placeholders(texts[0], self._grid(inputs.get("image_grid_thw")))

    def _grid(self, patches: Tensor | None) -> tuple[int, int] | None:
        if patches is None:
            return None
        _, height, width = patches[0].tolist()
        return height // self.image_processor.merge_size, width // self.image_processor.merge_size


def image_size(source: Image.Image | Path) -> tuple[int, int]:
    """Width and height of a picture, or of that in a file, from its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, Image.Image):
        return source.size
    with Image.open(source, formats=FORMATS) as image:
        return image.size


def _by_chat(images: list[Image.Image], among_others: int) -> list[Any]:
    """Images as their processor takes those of some chats, the last of them as some of several.

    A chat with one image does not have several. It is shown twice then, the second time for nothing.
    """
    if not among_others:
        return images
    border = len(images) - among_others
    several = images[border:]
    return [*([image] for image in images[:border]), several if among_others > 1 else several * 2]


def _opened(picture: Image.Image | Path) -> Image.Image:
    return picture.convert("RGB") if isinstance(picture, Image.Image) else decode(picture)


def _load(directory: Path, config: Any, max_pixels: int | None) -> tuple[Any, dict[str, Any]]:
    """The processor, and what it asks its image processor for."""
    try:
        with transformers_quiet():
            processor = _made(directory, config, max_pixels)
            return processor, _image_arguments(processor)
    except UserError:
        raise
    except Exception as error:  # what damaged or contradictory files make of many classes
        _check_files(directory)
        if "torchvision" in str(error):
            raise UserError(
                f"{directory}: its image processor needs torchvision, which is not used here; docs/models.md lists the "
                "models that were tried"
            ) from None
        raise UserError(f"{directory}: tokenizer or image processor cannot be loaded: {_line(error)}") from None


def _made(directory: Path, config: Any, max_pixels: int | None) -> Any:
    name, base = _processor_class(directory, config.model_type)
    if base is None:
        raise UserError(
            f"{directory / 'config.json'}: transformers has no processor for model_type {config.model_type!r}"
        )
    as_it_is: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    limit = {} if max_pixels is None else {"max_pixels": max_pixels}
    # The configuration says which image processor a name means that transformers no longer has.
    image_processor = AutoImageProcessor.from_pretrained(directory, config=config, backend=BACKEND, **as_it_is, **limit)
    tokenizer = AutoTokenizer.from_pretrained(directory, **as_it_is)
    if max_pixels is not None:
        _check_limit(directory, image_processor, max_pixels)
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: its tokenizer is not one of tokenizer.json; give a checkpoint that has one")
    if name == "PixtralProcessor":
        return PixtralProcessor(image_processor, tokenizer, directory)
    return _of_images(base, image_processor, tokenizer).from_pretrained(directory, **as_it_is)


def _check_files(directory: Path) -> None:
    """Raises UserError for the first file that is damaged by itself."""
    for file in processor_files(directory):
        with file.open("rb") as start:
            if start.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{file} is a pointer of Git LFS, not the file itself; run `git lfs pull`")
        if file.suffix == ".json":
            read_json(file, dict)


def _processor_class(directory: Path, model_type: str) -> tuple[str, Any]:
    """The name of a checkpoint's processor, and its class; None where transformers has none.

    As transformers' AutoProcessor chooses it: some models have that of another (Pixtral is a LLaVA with its own).
    """
    for file in (directory / name for name in _NAMING_FILES):
        stated = read_json(file, dict).get("processor_class") if file.is_file() else None
        if isinstance(stated, str):
            if (base := processor_class_from_name(stated)) is not None:
                return stated, base
            break
    name = PROCESSOR_MAPPING_NAMES.get(model_type) or ""
    return name, processor_class_from_name(name)


def _image_arguments(processor: Any) -> dict[str, Any]:
    """What a processor asks its image processor for."""
    merge = processor._merge_kwargs
    # Before transformers 5.23 it is told what arguments there are.
    known = [processor.valid_processor_kwargs] if "ModelProcessorKwargs" in inspect.signature(merge).parameters else []
    return merge(*known, tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt")["images_kwargs"]


def _check_limit(directory: Path, image_processor: Any, max_pixels: int) -> None:
    """Raises UserError if a limit has no effect, or not the one that is wanted."""
    if "max_pixels" not in getattr(image_processor.valid_kwargs, "__annotations__", {}):
        kind = type(image_processor).__name__
        raise UserError(f"--max_pixels has no effect on {directory}: {kind} has no such limit; leave it out")
    least = image_processor.size.shortest_edge
    if least is not None and max_pixels < least:
        raise UserError(
            f"--max_pixels {max_pixels:,} is less than what {directory} enlarges small images to, {least:,}; give more"
        )


def _of_images(base: type[Any], image_processor: Any, tokenizer: Any) -> type[Any]:
    """The processor class of a model with these parts; those for videos (with torchvision) and sound are left out."""
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}

    class ImageProcessorAndTokenizer(base):
        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            return [parts.get(name) for name in base.get_attributes()]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    return ImageProcessorAndTokenizer


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """Without transformers' warnings."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
