"""The processor of Pixtral and Mistral 3: transformers' own cannot be imported without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmrole.base.files import read_json

_SETTINGS = {
    "patch_size": 16,
    "spatial_merge_size": 1,
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}


class PixtralProcessor:
    """Image processor and tokenizer of a checkpoint; what it has of a `ProcessorMixin` is what is called here.

    An image is read in patches whose side is `patch_size * spatial_merge_size` pixels, a token each. Each row of them
    ends with a token for that, and the last one with a token for the end of the image.

    Args:
        image_processor: of the checkpoint, on Pillow.
        tokenizer: of the checkpoint.
        directory: of the checkpoint, for processor_config.json and chat_template.json.

    Attributes:
        chat_template: that of a file of the processor's own; None where only the tokenizer has one.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, directory: Path) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        file = directory / "processor_config.json"
        given = read_json(file, dict) if file.is_file() else {}
        settings = {name: given.get(name, value) for name, value in _SETTINGS.items()}
        file = directory / "chat_template.json"
        self.chat_template: str | None = read_json(file, dict).get("chat_template") if file.is_file() else None
        self._side: int = settings["patch_size"] * settings["spatial_merge_size"]
        self.image_token: str = settings["image_token"]
        self._row_end: str = settings["image_break_token"]
        self._end: str = settings["image_end_token"]

    def _merge_kwargs(self, **kwargs: Any) -> dict[str, dict[str, Any]]:
        return {"images_kwargs": {"patch_size": self._side, "return_tensors": kwargs["return_tensors"]}}

    def _process_images(self, images: Sequence[Image.Image], **kwargs: Any) -> tuple[Any, list[str]]:
        """Pixels, and what stands for each image."""
        inputs = self.image_processor(images, **kwargs)
        return inputs, [self._placeholders(*size) for size in inputs["image_sizes"].tolist()]

    def _placeholders(self, height: int, width: int) -> str:
        if height == width == self._side:
            raise ValueError("it would be one token, with which transformers' model fails")
        row = self.image_token * (width // self._side)
        return self._row_end.join([row] * (height // self._side)) + self._end
