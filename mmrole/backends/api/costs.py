"""What requests cost: what is estimated before they are sent, and what may still be spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource
from mmrole.data.requests import ChatRequest, Usage

# Servers count in ways of their own. These are near what most of them count, and rather too much than too little.
_BYTES_A_TOKEN = 4
_PIXELS_A_TOKEN = 750
_TOKENS_A_MESSAGE = 8
_MILLION = 1_000_000


class Prices(NamedTuple):
    """What a million tokens cost, in any currency."""

    prompt: float
    new: float

    def cost(self, usage: Usage) -> float:
        """What a reply costs."""
        return (usage.prompt_tokens * self.prompt + usage.new_tokens * self.new) / _MILLION


def estimate_usage(request: ChatRequest, most_pixels: int) -> Usage:
    """What a request will take: about so many tokens of the prompt, and the longest reply.

    Args:
        request: as it is sent.
        most_pixels: of a picture.
    """
    text = sum(len(message.text.encode("utf-8", "replace")) for message in request.messages)
    pixels = sum(min(_pixels(image), most_pixels) for image in request.images)
    prompt = text // _BYTES_A_TOKEN + pixels // _PIXELS_A_TOKEN + _TOKENS_A_MESSAGE * len(request.messages)
    return Usage(prompt, request.complete_settings().max_new_tokens)


def describe_estimate(requests: Sequence[ChatRequest], prices: Prices | None, most_pixels: int) -> str:
    """What requests will take and cost, in a line."""
    usages = [estimate_usage(request, most_pixels) for request in requests]
    total = Usage(sum(usage.prompt_tokens for usage in usages), sum(usage.new_tokens for usage in usages))
    images = sum(len(request.images) for request in requests)
    words = (
        f"{len(requests):,} requests with {images:,} images: about {total.prompt_tokens:,} tokens of prompts, at most "
        f"{total.new_tokens:,} of replies"
    )
    if prices is None:
        return f"{words}; with --price_in and --price_out it is said what they cost"
    return (
        f"{words}; about {prices.cost(Usage(total.prompt_tokens)):.4f} for the prompts, and at most "
        f"{prices.cost(Usage(0, total.new_tokens)):.4f} for the replies"
    )


class Budget:
    """What a run has spent, and what it may still spend. A try that may have been paid for counts as paid."""

    def __init__(self, prices: Prices | None, most: float | None, most_pixels: int) -> None:
        self.prices, self.most = prices, most
        self.spent = 0.0
        self._most_pixels = most_pixels
        self._under_way: dict[str, float] = {}

    def reserve(self, request: ChatRequest) -> bool:
        """Whether there is money for a request, at its longest, beside all that is under way; then it is under way."""
        if self.prices is None:
            return True
        longest = self.prices.cost(estimate_usage(request, self._most_pixels))
        if self.most is not None and self.spent + sum(self._under_way.values()) + longest > self.most:
            return False
        self._under_way[request.id] = longest
        return True

    def settle(self, id_: str, usage: Usage | None) -> None:
        """Counts what a request has cost that is not under way any more.

        Args:
            id_: of the request.
            usage: what it took; None where that is not known, so that it counts at its longest.
        """
        longest = self._under_way.pop(id_, 0.0)
        if self.prices is not None:
            self.spent += longest if usage is None else self.prices.cost(usage)


def _pixels(image: ImageSource) -> int:
    """The pixels of a picture, of which no more is read than that; 0 where it cannot be read."""
    from mmrole.base.pillow import FORMATS, Image

    if isinstance(image, Image.Image):
        return image.width * image.height
    try:
        with Image.open(image.path if isinstance(image, ImageFile) else image, formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:  # Pillow raises nearly any kind of damaged files; sending it says what is wrong
        return 0
