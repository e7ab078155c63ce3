"""What goes into the engine and what comes out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmrole.data.image_file import ImageFile


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen; names and meaning are those of transformers' GenerationConfig.

    The defaults are those of MMRole's inference with Qwen-VL-Chat's generation_config.json: sampling with top-p 0.3.

    Attributes:
        max_new_tokens: most tokens to generate, the stop token included.
        do_sample: sample; otherwise take the most probable token.
        temperature: divides the logits, above 0 (sampling only).
        top_k: keep so many of the most probable tokens, 0 for all (sampling only).
        top_p: keep the most probable tokens that together reach this probability, in (0, 1] (sampling only).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before; 1 is off.
        seed: the draws of a request follow from this number and the request's id alone.

    Raises:
        ValueError: if a number is out of range.
    """

    max_new_tokens: int = 512
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.3
    repetition_penalty: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}.")


@dataclass(frozen=True, eq=False, slots=True)
class ChatRequest:
    """One user turn, about an image or not, to be answered.

    Attributes:
        id: names the request in replies and messages and seeds its draws.
        system: system message.
        text: the user's text; plain, never parsed for markup or special tokens.
        image: a file or a picture, shown before the text as `Picture 1`.
        settings: how tokens are chosen.
        quotation: start and end of a part of `text` that somebody else wrote, after a line break. Whatever it says, the
            token ids of the rest are the same, and if the prompt is too long, it is cut here.
    """

    id: str
    system: str
    text: str
    image: Path | ImageFile | Image.Image | None = None
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    quotation: tuple[int, int] | None = None

    def random_stream(self) -> np.random.Generator:
        """The uniform draws of this request, one for each token, the same wherever and whenever it runs."""
        key = hashlib.sha256(f"{self.settings.seed}\n{self.id}".encode("utf-8", "surrogatepass")).digest()[:16]
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


@dataclass(frozen=True, slots=True)
class ChatReply:
    """An answer.

    Attributes:
        id: that of the request.
        text: decoded, white space stripped at both ends.
        token_ids: generated tokens without the stop token.
        finish_reason: "stop" at a stop token, "length" after max_new_tokens.
        prompt_tokens: positions of the prompt, 256 for an image included.
        new_tokens: generated tokens, the stop token included.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int
