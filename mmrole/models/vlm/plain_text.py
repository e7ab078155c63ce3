"""Text to token ids of a fast tokenizer, where nothing that the text says becomes a special token."""

from __future__ import annotations

import json
import re
import secrets
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class SpecialToken(NamedTuple):
    """A token that only the chat template may put into a prompt.

    Attributes:
        id: its number.
        lstrip: whether it takes the white space before it.
        rstrip: whether it takes the white space behind it.
    """

    id: int
    lstrip: bool
    rstrip: bool


class TokenizedText(NamedTuple):
    """Attributes: ids int64 [n]; starts, stops int64 [n], the characters of the text that each comes from."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


class PlainText:
    """Tokenizes texts that stand between special tokens, exactly as the tokenizer does it with all of the prompt.

    It is a copy of the tokenizer that does not know its special tokens, so that no text can name one. Of the other
    added tokens, which are words like any other, it knows all.

    Args:
        tokenizer: a fast tokenizer of transformers.
        names: contents of more added tokens that are special here: placeholders, whatever the tokenizer calls them.

    Attributes:
        special: the special tokens by their contents.
    """

    def __init__(self, tokenizer: Any, names: set[str]) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        added = state["added_tokens"]
        unknown = tokenizer.unk_token
        self.special = {
            token["content"]: SpecialToken(token["id"], token["lstrip"], token["rstrip"])
            for token in added
            if token["special"] or token["content"] in names
        }
        words = [token for token in added if token["content"] not in self.special]
        state |= {"added_tokens": words, "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        # Nobody can write what nobody knows. Behind this token a text is not at the beginning, where some tokenizers
        # put a blank.
        self._guard = secrets.token_hex(16)
        self._tokenizer.add_special_tokens([AddedToken(self._guard, normalized=False)])
        self._moved = {
            moved: token["id"]
            for token in words
            if (moved := self._tokenizer.token_to_id(token["content"])) is not None and moved != token["id"]
        }
        self._forbidden = np.array(
            sorted(token.id for content, token in self.special.items() if content != unknown), dtype=np.int64
        )
        longest_first = sorted(self.special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.encode = lru_cache(1 << 12)(self._encode)

    def split(self, text: str) -> list[str]:
        """A text of the template, cut before and behind each special token."""
        parts, stop = [], 0
        for match in self._pattern.finditer(text):
            parts += [text[stop : match.start()], match.group()]
            stop = match.end()
        return [part for part in [*parts, text[stop:]] if part]

    def _encode(self, text: str, at_start: bool = False) -> TokenizedText:
        """The tokens of a text.

        Args:
            text: no special token is read out of it. Lone surrogates, which UTF-8 does not have, are replaced.
            at_start: whether the prompt begins with it; otherwise a special token stands before it.
        """
        text = _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        guard = "" if at_start else self._guard
        encoding = self._tokenizer.encode(guard + text, add_special_tokens=False)
        skipped = 0 if at_start else 1
        ids = np.array(encoding.ids[skipped:], dtype=np.int64)
        spans = np.array(encoding.offsets[skipped:], dtype=np.int64).reshape(-1, 2) - len(guard)
        for moved, own in self._moved.items():
            ids[ids == moved] = own
        wrong = np.flatnonzero(np.isin(ids, self._forbidden))
        if wrong.size:  # its vocabulary has the special token as a word, too
            start, stop = spans[wrong[0]].tolist()
            cut = start + 1 if stop - start > 1 else stop
            return self._joined(text[:cut], text[cut:], at_start)
        return TokenizedText(ids, spans[:, 0], spans[:, 1])

    def _joined(self, first: str, second: str, at_start: bool) -> TokenizedText:
        """Both texts tokenized apart."""
        if not first or not second:
            raise ValueError("a character of a text is a special token of this vocabulary")
        one, two = self._encode(first, at_start), self._encode(second)
        offset = len(first)
        pairs = zip(one, (two.ids, two.starts + offset, two.stops + offset), strict=True)
        return TokenizedText(*(np.concatenate(pair) for pair in pairs))
