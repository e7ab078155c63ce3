"""Byte-level BPE of Qwen-VL: the vocabulary file `qwen.tiktoken`, its special tokens, and encoding with tiktoken."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Collection, Set
from itertools import groupby
from pathlib import Path

import tiktoken

from mmrole.qwen_vl.errors import CheckpointError

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
REF_START, REF_END = "<ref>", "</ref>"
BOX_START, BOX_END = "<box>", "</box>"
QUAD_START, QUAD_END = "<quad>", "</quad>"
IMG_START, IMG_END, IMG_PAD = "<img>", "</img>", "<imgpad>"
IMAGE_ST = (REF_START, REF_END, BOX_START, BOX_END, QUAD_START, QUAD_END, IMG_START, IMG_END, IMG_PAD)
# In the order of their ids, which follow those of the merges (spec §5.1).
SPECIAL_TOKENS = (ENDOFTEXT, IM_START, IM_END, *(f"<|extra_{i}|>" for i in range(205)), *IMAGE_ST)

# The pieces that no token crosses (spec §5.2).
PAT_STR = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tiktoken panics where `\s+(?!\S)` meets about a million characters; longer runs than this are cut out beforehand.
LONGEST_RUN = 2**16
# The pattern's \s (Unicode White_Space, which is not Python's) without \r and \n.
_SPACE = r"\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# Above this length a text is put into canonical order before Python's NFC, which takes quadratic time for it.
LONGEST_UNORDERED = 2**12


def read_ranks(path: str | os.PathLike[str]) -> dict[bytes, int]:
    """Reads a vocabulary file: one line "base64 rank" for each token (spec §5.1).

    Returns:
        Token bytes to rank: 0, 1, 2, … in the order of the file; the first 256 are the single bytes.

    Raises:
        CheckpointError: if the file is missing, unreadable or not such a table; the message names file and line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the vocabulary file ({error.strerror}).") from None
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the vocabulary; fetch the file itself.")
    ranks: dict[bytes, int] = {}
    for expected, line in enumerate(data.splitlines()):
        try:
            token, rank = line.split()
            if int(rank) != expected:
                raise ValueError(f"rank {int(rank)} instead of {expected}")
            ranks[base64.b64decode(token, validate=True)] = expected
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{path}: line {expected + 1} is not a base64 token with the next rank ({error}); "
                "give the complete qwen.tiktoken of this checkpoint."
            ) from None
        if len(ranks) != expected + 1:
            raise CheckpointError(f"{path}: line {expected + 1} repeats a token; the vocabulary file is damaged.")
    if sum(len(token) == 1 for token in list(ranks)[:256]) != 256:
        raise CheckpointError(f"{path}: the first 256 tokens are not the single bytes; not a qwen.tiktoken file.")
    return ranks


def write_ranks(path: str | os.PathLike[str], ranks: dict[bytes, int]) -> None:
    """Writes a vocabulary file as `read_ranks` reads it; replaces an existing one in one step."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda t: t[1]))
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"".join(lines))
    partial.replace(path)


def make_encoding(ranks: dict[bytes, int], special_tokens: dict[str, int]) -> tiktoken.Encoding:
    """The tiktoken encoding of a vocabulary (from `read_ranks`) and of special tokens with the ids that follow it."""
    return tiktoken.Encoding("Qwen-VL", pat_str=PAT_STR, mergeable_ranks=ranks, special_tokens=special_tokens)


def encode(
    encoding: tiktoken.Encoding,
    text: str,
    allowed_special: Set[str] = frozenset(),
    disallowed_special: Collection[str] = (),
    longest_run: int = LONGEST_RUN,
) -> list[int]:
    """Encodes the NFC form of a text of any length, in about linear time.

    Args:
        encoding: from `make_encoding`.
        text: lone surrogates become U+FFFD.
        allowed_special: special tokens that are recognised in the text; all others are plain text.
        disallowed_special: special tokens that the text must not contain.
        longest_run: characters of whitespace that are left to the regular expression in one piece.

    Returns:
        Token ids.

    Raises:
        ValueError: if a disallowed special token occurs.
    """
    text = normalize(text)
    special = {"allowed_special": allowed_special, "disallowed_special": disallowed_special}
    if len(text) <= longest_run:
        return encoding.encode(text, **special)
    ids: list[int] = []
    start = 0
    # A run that a line break follows belongs to another branch of the pattern, which takes it at any length.
    for run in re.finditer(f"(?<![{_SPACE}])[{_SPACE}]{{{longest_run},}}+(?![\\r\\n])", text):
        # The piece is the whole run at the end of a text, which is what tiktoken sees before a special token, too;
        # otherwise the last character of the run belongs to what follows.
        is_last = run.end() == len(text) or text.startswith(tuple(allowed_special), run.end())
        end = run.end() if is_last else run.end() - 1
        ids += encoding.encode(text[start : run.start()], **special)
        ids += encoding._encode_single_piece(text[run.start() : end])
        start = end
    return ids + encoding.encode(text[start:], **special)


def normalize(text: str) -> str:
    """NFC, in linear time also for texts that are nothing but combining marks."""
    if unicodedata.is_normalized("NFC", text):
        return text
    if len(text) > LONGEST_UNORDERED:
        decomposed = "".join(unicodedata.normalize("NFD", character) for character in text)
        runs = groupby(decomposed, key=lambda character: unicodedata.combining(character) > 0)
        text = "".join(
            character
            for is_marks, run in runs
            for character in (sorted(run, key=unicodedata.combining) if is_marks else run)
        )
    return unicodedata.normalize("NFC", text)


def replace_surrogates(text: str) -> str:
    """Two joined surrogates become their character, a lone one U+FFFD, as in tiktoken."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
