"""The list format of Qwen-VL: images, boxes and text as a list of dictionaries, and as one text with markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmrole.qwen_vl.bpe import (
    BOX_END,
    BOX_START,
    ENDOFTEXT,
    IMAGE_ST,
    IMG_END,
    IMG_START,
    REF_END,
    REF_START,
    SPECIAL_TOKENS,
    normalize,
    replace_surrogates,
)

_OPENING_TAG = re.compile("<(img|ref|box|quad)>")
_FORBIDDEN = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS if token not in (*IMAGE_ST, ENDOFTEXT)))


def from_list_format(items: Iterable[Mapping[str, Any]]) -> str:
    """Writes a list as text with markup (spec §5.4).

    Args:
        items: each has one of the keys `image` (a path), `text`, or `box` (a list of [x1, y1, x2, y2] in 0 … 999 of
            width and height; may have a `ref` besides, the name of what is in the boxes). Images are numbered from 1.

    Raises:
        ValueError: if an item has none of these keys.
    """
    text = ""
    images = 0
    for item in items:
        if "image" in item:
            images += 1
            text += f"{picture_label(images)}{IMG_START}{item['image']}{IMG_END}\n"
        elif "text" in item:
            text += item["text"]
        elif "box" in item:
            if "ref" in item:
                text += f"{REF_START}{item['ref']}{REF_END}"
            for x1, y1, x2, y2 in item["box"]:
                text += f"{BOX_START}({int(x1)},{int(y1)}),({int(x2)},{int(y2)}){BOX_END}"
        else:
            raise ValueError(f"an item of the list format has the key image, text or box; this one has not: {item!r}")
    return text


def picture_label(number: int) -> str:
    """What stands before the image with this number, counted from 1 in each user turn."""
    return f"Picture {number}: "


def to_list_format(text: str) -> list[dict[str, str]]:
    """Splits a text with markup into items of one key each: `image`, `ref`, `box`, `quad` or `text` (spec §5.4).

    Raises:
        ValueError: if a tag is not closed, or for a special token other than the image tags and `<|endoftext|>`.
    """
    text = replace_surrogates(normalize(text))
    if forbidden := _FORBIDDEN.search(text):
        raise ValueError(f"the list format has no place for the special token {forbidden.group()!r}")
    items = []
    position = 0
    while tag := _OPENING_TAG.search(text, position):
        if tag.start() > position:
            items.append({"text": text[position : tag.start()]})
        closing = f"</{tag.group(1)}>"
        end = text.find(closing, tag.end())
        if end < 0:
            raise ValueError(f"unclosed tag {tag.group()} in {text!r}")
        key = "image" if tag.group(1) == "img" else tag.group(1)
        items.append({key: text[tag.end() : end]})
        position = end + len(closing)
    return [*items, {"text": text[position:]}] if position < len(text) else items
