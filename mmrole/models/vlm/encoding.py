"""Chats to token ids by a checkpoint's own template and tokenizer, images to the placeholders of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmrole.base.errors import UserError
from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource, LabelledImage, Message, Quotation
from mmrole.models.families import Encoded, EncodedImage
from mmrole.models.vlm.chat_template import ChatTemplate, TextShape, TurnShape, shape_of
from mmrole.models.vlm.plain_text import PlainText
from mmrole.models.vlm.processor import Placeholders, VlmProcessor, image_size


class ShapedChat(NamedTuple):
    """A chat as the template sees it, and what it does not see.

    Attributes:
        turns: shapes of the messages.
        texts: what goes into the places of texts, in order, without white space around it.
        images: in order.
    """

    turns: tuple[TurnShape, ...]
    texts: list[str]
    images: list[ImageSource]


class ChatEncoder:
    """Encodes chats for a model.

    For harmless texts the ids are those of the tokenizer for the whole rendered chat, with placeholders expanded.

    Args:
        processor: tokenizer and image processor of the checkpoint.
        image_token_id: the token whose positions take the rows of images.
        stop_ids: where replies end.
    """

    def __init__(self, processor: VlmProcessor, image_token_id: int, stop_ids: frozenset[int]) -> None:
        tokenizer = processor.tokenizer
        self.processor, self.image_token_id, self.stop_ids = processor, image_token_id, stop_ids
        # Some tokenizers do not call all of these special.
        names = tokenizer.convert_ids_to_tokens([image_token_id, *sorted(stop_ids)])
        self.plain_text = PlainText(tokenizer, {processor.image_token, *names})
        self.begin_ids = begin_ids(tokenizer)
        self.template = ChatTemplate(tokenizer, processor.directory)
        self._size = lru_cache(1 << 16)(_size)
        self._tokens_of_frame = lru_cache(1 << 10)(self._count_frame)

    def encode(self, messages: Sequence[Message], *, for_training: bool = False) -> Encoded:
        """See `Family.encode`. What is learned: the answers, each with the token that ends it."""
        chat = shape_of_chat(messages)
        among_others = self._are_several(chat)
        placeholders = [self.placeholders(image, among_others) for image in chat.images]
        frame = self.template.frame(chat.turns, not for_training)
        tokens = _Tokens(self.plain_text, self.begin_ids if self._is_begun(frame[0].text) else ())
        shown: list[tuple[int, int]] = []
        open_answer = False
        for part in frame:
            if part.number >= 0:
                tokens.text(chat.texts[part.number], part.learned)
                open_answer = part.learned
                continue
            open_answer = open_answer or part.learned
            for piece in self.plain_text.split(part.text):
                special = self.plain_text.special.get(piece)
                if special is None:
                    # What is blank between an answer and the token that ends it must be generated, too.
                    tokens.text(piece, part.learned or (open_answer and piece.isspace()))
                elif piece == self.processor.image_token and len(shown) < len(placeholders):
                    shown.append(tokens.image(placeholders[len(shown)].text))
                else:
                    ends_answer = open_answer and special.id in self.stop_ids
                    tokens.any(piece, part.learned or ends_answer)
                    open_answer = open_answer and not ends_answer
        if open_answer and self.stop_ids:  # a template that has no token for it: one must be learned all the same
            tokens.special(min(self.stop_ids), learned=True)
        tokens.flush()
        if len(shown) < len(placeholders):
            raise UserError(f"{self.processor.directory}: its chat template leaves out an image")
        ids, learned = tokens.joined()
        images = [
            EncodedImage(
                spans=tuple(_runs(np.flatnonzero(ids[start:stop] == self.image_token_id) + start)),
                label_start=start,
                stop=stop,
                image=image,
                grid=each.grid,
                among_others=among_others,
            )
            for image, each, (start, stop) in zip(chat.images, placeholders, shown, strict=True)
        ]
        return Encoded(ids.astype(np.int32), learned, tuple(images))

    def _is_begun(self, text: str) -> bool:
        """Whether the tokenizer's own beginning comes before a chat, of whose frame this is the first part.

        transformers' processors leave it out where the template has written it.
        """
        bos_token = self.processor.tokenizer.bos_token
        return bos_token is None or not text.startswith(bos_token)

    def _are_several(self, chat: ShapedChat) -> bool:
        """Whether the images of a chat are `EncodedImage.among_others`."""
        return self.processor.counts_images and len(chat.images) > 1

    def placeholders(self, image: ImageSource, among_others: bool = False) -> Placeholders:
        """What stands for an image.

        Args:
            image: of any size.
            among_others: see `EncodedImage`.

        Raises:
            OSError: it cannot be read.
            UserError: the model takes no image of such a size.
        """
        width, height = image.size if isinstance(image, Image.Image) else self._size(image)
        try:
            return self.processor.placeholders((width, height), among_others)
        except Exception as error:  # of nearly any kind: at shapes that processors were not made for
            name = "an image" if isinstance(image, Image.Image) else image if isinstance(image, Path) else image.path
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name}: {width} x {height} pixels, which the model does not take ({reason}); crop or scale it"
            ) from None

    def most_positions(self, messages: Sequence[Message]) -> int:
        """Positions that a prompt cannot exceed: its bytes and those of the frame, and what stands for its images."""
        chat = shape_of_chat(messages)
        frame = sum(self._tokens_of_frame(part.text) for part in self.template.frame(chat.turns, True))
        texts = sum(len(text.encode("utf-8", "replace")) for text in chat.texts)
        # SentencePiece puts a blank before a text.
        several = self._are_several(chat)
        images = sum(self._tokens_of_frame(self.placeholders(image, several).text) for image in chat.images)
        return len(self.begin_ids) + frame + texts + len(chat.turns) + images

    def _count_frame(self, text: str) -> int:
        """Tokens that a text of the template cannot exceed."""
        return sum(
            1 if piece in self.plain_text.special else len(piece.encode()) for piece in self.plain_text.split(text)
        )

    def positions(self, messages: Sequence[Message]) -> int:
        """Positions of a prompt."""
        return len(self.encode(messages).input_ids)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.plain_text.encode(text).ids)

    def shortened(self, text: str, tokens: int) -> str:
        """A text without its last tokens, at least so many."""
        starts = self.plain_text.encode(text).starts
        return text[: starts[-tokens]] if 0 < tokens <= len(starts) else "" if tokens else text


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts before a text."""
    ids, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return next(tuple(ids[:n]) for n in range(len(ids)) if ids[n : n + len(bare)] == bare)


class _Tokens:
    """Tokens in the making: texts that follow each other are tokenized as one.

    Args:
        plain_text: tokenizes.
        begin: ids before all others, of which the tokenization of the text behind them knows nothing.
    """

    def __init__(self, plain_text: PlainText, begin: Sequence[int]) -> None:
        self._plain_text = plain_text
        self._ids = [np.array(begin, dtype=np.int64)]
        self._learned = [np.zeros(len(begin), dtype=bool)]
        self._begin = self._length = len(begin)
        self._texts: list[str] = []
        self._stretches: list[tuple[int, int]] = []  # of the texts' characters, those that are learned
        self._strips = False

    def text(self, text: str, learned: bool) -> None:
        """Goes on with a text."""
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        start = sum(map(len, self._texts))
        self._texts.append(text)
        if learned and text:
            self._stretches.append((start, start + len(text)))

    def any(self, piece: str, learned: bool) -> None:
        """Goes on with a special token, or a text, as `PlainText.split` cuts them."""
        special = self._plain_text.special.get(piece)
        if special is None:
            self.text(piece, learned)
            return
        if special.lstrip and self._texts:
            self._texts = ["".join(self._texts).rstrip()]
        self.special(special.id, learned)
        self._strips = special.rstrip

    def image(self, text: str) -> tuple[int, int]:
        """Goes on with what stands for an image; returns where its special tokens begin and end.

        Text of it before and behind them is one with the text around it.
        """
        start = stop = -1
        for piece in self._plain_text.split(text):
            self.any(piece, learned=False)
            if piece in self._plain_text.special:
                start, stop = (self._length - 1 if start < 0 else start), self._length
        return start, stop

    def special(self, token: int, learned: bool) -> None:
        """Goes on with a token."""
        self.flush()
        self._append(np.array([token]), np.array([learned]))

    def flush(self) -> int:
        """Ends the text; returns how many tokens there are."""
        text = "".join(self._texts)
        if text:
            ids, starts, stops = self._plain_text.encode(text, at_start=self._length == self._begin)
            learned = np.zeros(len(ids), dtype=bool)
            for start, stop in self._stretches:
                learned |= (starts < stop) & (stops > start)
            self._append(ids, learned)
        self._texts, self._stretches = [], []
        return self._length

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All ids, and which of them are learned."""
        return np.concatenate(self._ids), np.concatenate(self._learned)

    def _append(self, ids: np.ndarray, learned: np.ndarray) -> None:
        self._ids.append(ids)
        self._learned.append(learned)
        self._length += len(ids)


def shape_of_chat(messages: Sequence[Message]) -> ShapedChat:
    """What a template sees of a chat, and what it does not.

    Labels of images (`Picture 1:`), with which Qwen-VL is prompted, are left out, and so is the line break that its
    format has behind an image: these models are given the image, then the text.
    """
    turns, texts, images = [], [], []
    for message in messages:
        parts: list[TextShape | None] = []
        for part in _joined_texts(message):
            if isinstance(part, str):
                parts.append(shape_of(part))
                texts.append(part.strip())
            else:
                parts.append(None)
                images.append(part)
        turns.append(TurnShape(message.role, tuple(parts)))
    return ShapedChat(tuple(turns), texts, images)


def _joined_texts(message: Message) -> list[Any]:
    """Texts that follow each other as one, and images."""
    parts: list[Any] = []
    after_label = False
    for part in message.content:
        if isinstance(part, LabelledImage):
            parts.append(part.image)
            after_label = True
            continue
        if isinstance(part, str | Quotation):
            text = part if isinstance(part, str) else part.text
            if after_label:
                text = text.removeprefix("\r").removeprefix("\n")
            if parts and isinstance(parts[-1], str):
                parts[-1] += text
            else:
                parts.append(text)
        else:
            parts.append(part)
        after_label = False
    return [part for part in parts if part != ""] or [""]


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers as ranges: first and one behind the last."""
    if not places.size:
        return []
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks)]


def _size(image: Path | ImageFile) -> tuple[int, int]:
    return image_size(image if isinstance(image, Path) else image.open())
