"""Whether chats are encoded as a checkpoint's template and tokenizer have them, found out on one that is harmless."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mmrole.base.errors import UserError
from mmrole.data.messages import Message, Role
from mmrole.models.vlm.encoding import ChatEncoder
from mmrole.models.vlm.processor import VlmProcessor

# With what tokenizers are particular about: white space at ends and doubled, digits, accents, other scripts.
CHAT: tuple[tuple[Role, str], ...] = (
    ("system", "You are Zoë, who keeps the  lighthouse.\n\nHer words: short ones."),
    ("user", "\nWhat do you see?  At 12:45, I mean. "),
    ("assistant", "Three boats – and 灯塔, my dear."),
    ("user", "And now, Zoë?"),
)
"""Roles and texts; the first message of the user begins with an image."""


def check_encoding(encoder: ChatEncoder) -> None:
    """Compares the ids of a chat with those of the whole rendered text.

    Raises:
        UserError: they differ, or the template refuses the roles that chats have here.
    """
    image = Image.new("RGB", (80, 60))
    shown = False
    messages, chat = [], []
    for role, text in CHAT:
        shows = role == "user" and not shown
        shown = shown or shows
        messages.append(Message(role, (image, text) if shows else (text,)))
        content: list[dict[str, str]] = [{"type": "image"}] if shows else []
        chat.append({"role": role, "content": [*content, {"type": "text", "text": text}]})
    _check_image(encoder, image)
    encoded = encoder.encode(messages)
    ids = encoded.input_ids
    if not encoded.images[0].spans:
        raise UserError(
            f"{encoder.processor.directory / 'config.json'}: image_token_id {encoder.image_token_id} is not among the "
            "tokens that the checkpoint's processor puts in the place of an image; download or copy it again"
        )
    whole = _whole(encoder, chat, encoder.placeholders(image).text)
    if not np.array_equal(ids, whole):
        place = next((n for n, pair in enumerate(zip(ids, whole, strict=False)) if pair[0] != pair[1]), "the end")
        raise UserError(
            f"{encoder.processor.directory}: its tokenizer or template does something that is not done here (a chat "
            f"encoded piece by piece differs at token {place}); docs/models.md lists the models that were tried"
        )


def _check_image(encoder: ChatEncoder, image: Image.Image) -> None:
    """Raises UserError unless the image processor takes an image, and the tokenizer knows what stands for it."""
    processor: VlmProcessor = encoder.processor
    try:
        processor.placeholders(image.size)
    except Exception as error:  # settings of its file that contradict each other, of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{processor.directory}: its image processor does not take an image ({reason}); copy the checkpoint "
            "again, if it is one of those that docs/models.md lists"
        ) from None
    if processor.image_token not in encoder.plain_text.special:
        raise UserError(
            f"{processor.directory}: its tokenizer has no token {processor.image_token!r}, which stands for an image; "
            "download or copy the checkpoint again"
        )


def _whole(encoder: ChatEncoder, chat: list[dict[str, Any]], placeholders: str) -> list[int]:
    """As transformers' processors do it: rendered, placeholders expanded, tokenized in one go."""
    processor: VlmProcessor = encoder.processor
    tokenizer = processor.tokenizer
    rendered = encoder.template.apply(chat, for_answer=True).replace(processor.image_token, placeholders)
    begun = tokenizer.bos_token is not None and rendered.startswith(tokenizer.bos_token)
    return tokenizer(rendered, add_special_tokens=not begun)["input_ids"]
