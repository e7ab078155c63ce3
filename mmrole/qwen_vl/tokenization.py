"""Tokenizer of Qwen-VL for current transformers; the class keeps the original's name, as saved checkpoints give it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

from transformers import AddedToken, PreTrainedTokenizer

from mmrole.qwen_vl import bpe, list_format
from mmrole.qwen_vl.errors import CheckpointError
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE

Token = bytes | str  # bytes of an ordinary token, text of a special one


class QWenTokenizer(PreTrainedTokenizer):
    """Byte-level BPE of Qwen-VL over the file `qwen.tiktoken` (spec §5).

    `tokenizer(text)` recognises every special token written in the text. `<img>path</img>` becomes `<img>`, 256 ids
    (the path's UTF-8 bytes as ids 0 … 255, then `<imgpad>`) and `</img>`. For text that other people wrote use
    `encode_ordinary`, for paths of more than 256 bytes `QWenProcessor`.

    There is no padding token until one is set: `tokenizer.pad_token_id = tokenizer.eod_id`.

    Args:
        vocab_file: path of `qwen.tiktoken`. A `config.json` beside it must fit the vocabulary.
        errors: what `decode` does with bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        CheckpointError: if the vocabulary is missing, damaged, or that of another model.
    """

    # transformers declares for instances what it reads from the class; so below.
    vocab_files_names: ClassVar = {"vocab_file": "qwen.tiktoken"}  # pyright: ignore[reportIncompatibleVariableOverride]
    model_input_names: ClassVar = ["input_ids", "token_type_ids", "attention_mask"]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, vocab_file: str | os.PathLike[str] | None, errors: str = "replace", **kwargs: Any):
        if vocab_file is None:
            directory = Path(kwargs.get("name_or_path", ""))
            raise CheckpointError(
                f"{directory / 'qwen.tiktoken'}: missing; copy the vocabulary file of Qwen-VL-Chat into the directory."
            )
        self.errors = errors
        self.mergeable_ranks = bpe.read_ranks(vocab_file)
        self.special_tokens = {token: id_ for id_, token in enumerate(bpe.SPECIAL_TOKENS, len(self.mergeable_ranks))}
        _check_config(Path(vocab_file), self.special_tokens)
        self.tokenizer = bpe.make_encoding(self.mergeable_ranks, self.special_tokens)
        self.decoder: dict[int, Token] = {
            id_: token for token, id_ in (*self.mergeable_ranks.items(), *self.special_tokens.items())
        }
        self.IMAGE_ST = bpe.IMAGE_ST
        self.eod_id = self.special_tokens[bpe.ENDOFTEXT]
        self.im_start_id, self.im_end_id = self.special_tokens[bpe.IM_START], self.special_tokens[bpe.IM_END]
        self.ref_start_id, self.ref_end_id = self.special_tokens[bpe.REF_START], self.special_tokens[bpe.REF_END]
        self.box_start_id, self.box_end_id = self.special_tokens[bpe.BOX_START], self.special_tokens[bpe.BOX_END]
        self.quad_start_id, self.quad_end_id = self.special_tokens[bpe.QUAD_START], self.special_tokens[bpe.QUAD_END]
        self.img_start_id, self.img_end_id = self.special_tokens[bpe.IMG_START], self.special_tokens[bpe.IMG_END]
        self.img_pad_id = self.special_tokens[bpe.IMG_PAD]
        # Neither belongs into what save_pretrained writes: the code in a checkpoint is never run, and no token is
        # ever added.
        kwargs.pop("auto_map", None)
        added = kwargs.pop("added_tokens_decoder", {})
        # What is among the arguments is saved as it is then, so that a padding side set later is not lost.
        kwargs.setdefault("padding_side", self.padding_side)
        super().__init__(errors=errors, **kwargs)
        self._add_tokens(list(added.values()), special_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included (the model's tables may have more rows)."""
        return len(self.decoder)

    def __len__(self) -> int:
        return len(self.decoder)

    # Ordinary tokens are bytes, as in the original, not text as transformers has it; so below.
    def get_vocab(self) -> dict[Token, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Token to id: bytes for ordinary tokens, str for special ones."""
        return {**self.mergeable_ranks, **self.special_tokens}

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of a text in which nothing is recognised as a special token or markup (lone surrogates → U+FFFD)."""
        return bpe.encode(self.tokenizer, text)

    def encode_markup(
        self, text: str, allowed_special: Set[str] | str = "all", disallowed_special: Collection[str] | str = ()
    ) -> list[int]:
        """Ids of a text with markup: what `tokenizer(text)` gives, without the cost of transformers' call.

        Args:
            text: any text.
            allowed_special: special tokens to recognise; "all" for all of them. The others are plain text.
            disallowed_special: special tokens that must not occur; "all" for all that are not allowed.

        Raises:
            ValueError: if `<img>` is not closed, or a path has more than 256 bytes, or for a disallowed token.
            TypeError: if another special token stands between `<img>` and `</img>`.
        """
        allowed = frozenset(self.special_tokens if allowed_special == "all" else allowed_special)
        disallowed = self.special_tokens.keys() - allowed if disallowed_special == "all" else disallowed_special
        ids = bpe.encode(self.tokenizer, text, allowed, disallowed)
        encoded: list[int] = []
        position = 0
        for start, end in self._image_spans(ids):
            encoded += ids[position : start + 1] + self._path_ids(ids[start + 1 : end])
            position = end
        return encoded + ids[position:] if encoded else ids

    # Tokens are bytes here, as in the published tokenizer, where transformers has them as texts; so below.
    def tokenize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str,
        allowed_special: Set[str] | str = "all",
        disallowed_special: Collection[str] | str = (),
        split_special_tokens: bool = False,
        **kwargs: Any,
    ) -> list[Token]:
        """The tokens of a text, as `encode_markup`; `split_special_tokens` recognises no special token."""
        if split_special_tokens:
            allowed_special = frozenset()
        ids = self.encode_markup(text, allowed_special, disallowed_special)
        return [self.decoder[id_] for id_ in ids]

    def convert_tokens_to_ids(self, tokens: Token | Iterable[Token]) -> int | list[int | None] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Ids of tokens: bytes of ordinary ones, text of special ones; None for what is not a token."""
        if isinstance(tokens, bytes | str):
            return self._id_of(tokens)
        return [self._id_of(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Iterable[Token]) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD (see `errors`)."""
        joined = b"".join(token.encode() if isinstance(token, str) else token for token in tokens)
        return joined.decode(errors=self.errors)

    def from_list_format(self, items: Iterable[Mapping[str, Any]]) -> str:
        """Writes images, boxes and text as one text with markup: see `list_format.from_list_format`."""
        return list_format.from_list_format(items)

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """Splits a text with markup into images, boxes and text: see `list_format.to_list_format`."""
        return list_format.to_list_format(text)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes `qwen.tiktoken` into a directory; returns its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(save_directory, prefix + self.vocab_files_names["vocab_file"])
        bpe.write_ranks(path, self.mergeable_ranks)
        return (path,)

    # Called by name; what is not used here goes into kwargs.
    def _decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        errors: str | None = None,
        keep_image_special: bool = False,
        **kwargs: Any,
    ) -> str:
        # Image spans become `<img>path</img>` again. Skipping special tokens drops the tags but leaves the path, and
        # with keep_image_special the tags of references, boxes and quadrangles, too (spec §5.3).
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        kept = range(self.ref_start_id, self.quad_end_id + 1) if keep_image_special else ()

        def to_bytes(ids: list[int]) -> bytes:
            if skip_special_tokens:
                ids = [id_ for id_ in ids if id_ < self.eod_id or id_ in kept]
            return self.tokenizer.decode_bytes(ids)

        decoded = b""
        position = 0
        for start, end in self._image_spans(ids):
            decoded += to_bytes(ids[position : start + 1]) + self._path_bytes(ids[start + 1 : end])
            position = end
        return (decoded + to_bytes(ids[position:])).decode(errors=errors or self.errors)

    def _image_spans(self, ids: list[int]) -> list[tuple[int, int]]:
        # Indices of each <img> and of the </img> that closes it.
        spans = []
        end = -1
        for start in [i for i, id_ in enumerate(ids) if id_ == self.img_start_id] if self.img_start_id in ids else ():
            if start < end:
                continue  # inside of a span
            try:
                end = ids.index(self.img_end_id, start)
            except ValueError:
                raise ValueError("Unclosed image token: <img> without </img>") from None
            spans.append((start, end))
        return spans

    def _path_ids(self, ids: list[int]) -> list[int]:
        # Ordinary ids of a path → the 256 ids between <img> and </img>.
        special = next((id_ for id_ in ids if id_ >= self.eod_id), None)
        if special is not None:
            raise TypeError(f"the special token {self.decoder[special]} stands between <img> and </img>")
        path = self.tokenizer.decode_bytes(ids)
        if len(path) > FEATURES_PER_IMAGE:
            raise ValueError(
                f"The content in <img>..</img> is too long: {len(path)} bytes, and {FEATURES_PER_IMAGE} fit into the "
                "token ids; QWenProcessor takes paths of any length"
            )
        return [*path, *[self.img_pad_id] * (FEATURES_PER_IMAGE - len(path))]

    def _path_bytes(self, ids: list[int]) -> bytes:
        # The ids between <img> and </img> → the path. ValueError if it is not followed by <imgpad>, or no path.
        path = bytes(ids[: ids.index(self.img_pad_id)])
        text = path.decode()
        special = next((token for token in self.special_tokens if token in text), None)
        if special is not None:
            raise ValueError(f"an image path spells the special token {special}: {text!r}")
        return path

    def _id_of(self, token: Token) -> int | None:
        return self.mergeable_ranks.get(token) if isinstance(token, bytes) else self.special_tokens.get(token)

    def _convert_id_to_token(self, index: int) -> Token:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.decoder[index]
        except KeyError:
            raise ValueError(f"unknown ids: {index} is not the id of a token") from None

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        # The model's tables have no rows for further tokens. Called by the base class for pad_token and the like.
        if new_tokens and not special_tokens:
            raise ValueError("Adding regular tokens is not supported")
        unknown = [str(token) for token in new_tokens if str(token) not in self.special_tokens]
        if unknown:
            raise ValueError(f"Adding unknown special tokens is not supported: {', '.join(unknown)}")
        return 0


def _check_config(vocab_file: Path, special_tokens: dict[str, int]) -> None:
    # A vocabulary of another model, or one cut short, would give ids that mean something else to this model.
    file = vocab_file.with_name("config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # whether there is a sound configuration is for the model to say
    visual = config.get("visual") if isinstance(config, dict) else None
    expected = visual.get("image_start_id") if isinstance(visual, dict) else None
    found = special_tokens[bpe.IMG_START]
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{vocab_file}: {special_tokens[bpe.ENDOFTEXT]:,} tokens, which makes <img> {found}, but {file.name} says "
            f"image_start_id {expected}; this is the vocabulary of another model, or part of one."
        )
    rows = config.get("vocab_size") if isinstance(config, dict) else None
    if isinstance(rows, int) and max(special_tokens.values()) >= rows:
        raise CheckpointError(
            f"{vocab_file}: ids up to {max(special_tokens.values())}, but the model's tables have {rows} rows by "
            f"{file.name}; this is the vocabulary of another model."
        )
