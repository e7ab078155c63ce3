"""A talk beside its picture, in a terminal."""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from mmrole.base.json_values import JsonObject
from mmrole.data.prompts import read_role_play_prompt, split_pictures

_COLUMNS, _ROWS = 12, 6
_TEXT_WIDTH = 72


def picture_lines(path: Path, coloured: bool) -> list[str]:
    """A picture as a few lines of equal width: in its colours, or as `#` where it is not paper."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    cells = np.asarray(whole.resize((_COLUMNS, _ROWS), Image.Resampling.BOX), dtype=int)
    if coloured:
        rows = (("\x1b[48;2;{};{};{}m  ".format(*cell) for cell in row) for row in cells)
        return ["".join(row) + "\x1b[0m" for row in rows]
    differs = np.abs(cells - np.asarray(whole, dtype=int)[0, 0]).max(-1) > 40
    return ["".join("##" if cell else ". " for cell in row) for row in differs]


def talk_lines(images: Path, record: JsonObject, coloured: bool) -> list[str]:
    """An answered record: the path of its picture, and the picture with what was said to its right."""
    question, answer = record["conversations"]
    role, partner = record["role"], record["other_role"]
    talk = read_role_play_prompt(split_pictures(question["value"])[1], role, partner)
    said = [*talk.history, *([(partner, talk.last)] if talk.last else []), (role, answer["answer"])]
    words = [line for who, what in said for line in textwrap.wrap(f"{who}: {what}", _TEXT_WIDTH)]
    picture = picture_lines(images / record["image"], coloured)
    blank = " " * (2 * _COLUMNS)
    pairs = zip_longest(picture, words)
    return [f"images/{record['image']}"] + [f"{shown or blank}  {heard or ''}".rstrip() for shown, heard in pairs]
