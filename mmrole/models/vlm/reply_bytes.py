"""The UTF-8 behind tokens, one by one, so that a reply can be shown while it grows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class ReplyBytes:
    """Bytes of the tokens of a fast tokenizer, byte-level or in the manner of SentencePiece.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        byte_level = "ByteLevel" in json.dumps([state.get("decoder"), state.get("pre_tokenizer")])
        self._bytes: dict[int, bytes] = {}
        for token, id_ in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).items():
            self._bytes[id_] = _of_byte_level(token) if byte_level else _of_sentencepiece(token)
        for token in state["added_tokens"]:
            content = token["content"]
            spoken = content.encode() if byte_level else _of_sentencepiece(content)
            self._bytes[token["id"]] = b"" if token["special"] else spoken

    def of(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of some tokens; special ones, and ids without a token, have none."""
        return b"".join(self._bytes.get(int(token), b"") for token in token_ids)


def _of_byte_level(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)


def _of_sentencepiece(token: str) -> bytes:
    match = _BYTE.fullmatch(token)
    return bytes([int(match.group(1), 16)]) if match else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2): printable ones for themselves, the others
    for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
