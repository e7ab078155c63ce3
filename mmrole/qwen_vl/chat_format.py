"""Chat prompts of Qwen-VL (spec §6): hand-written markup as in the original, and structured requests of plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmrole.qwen_vl.bpe import ENDOFTEXT, IM_END, IM_START
from mmrole.qwen_vl.list_format import picture_label
from mmrole.qwen_vl.tokenization import QWenTokenizer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class ChatTurn:
    """What a user says, and in earlier turns of a chat the reply. Nothing in the texts is markup.

    Attributes:
        text: the user's words.
        images: shown before the text, as "Picture 1", "Picture 2", …; anything that tells images apart.
        reply: the assistant's words; None in the last turn, which is to be answered.
    """

    text: str
    images: Sequence[Any] = ()
    reply: str | None = None


class InlineImage(NamedTuple):
    """An image among the texts of a message.

    Attributes:
        image: anything that tells images apart.
        label: stands before it as it is, and nothing behind it; by default `Picture 1: ` and so on, and a newline.
    """

    image: Any
    label: str | None = None


class ImageSpan(NamedTuple):
    """Where an image goes.

    Attributes:
        start: index in `input_ids` of the first of its 256 feature positions.
        image: what the message holds.
        label_start: index of the first token of its own label, or of `<img>`.
    """

    start: int
    image: Any
    label_start: int


Content = Sequence[str | InlineImage]


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of a chat; the feature positions hold `<imgpad>`.

    Attributes:
        input_ids: the ids.
        images: in order.
        learned: lengths of stretches of ids, and whether a model that is trained on the chat learns to say them.
    """

    input_ids: list[int]
    images: list[ImageSpan]
    learned: list[tuple[int, bool]] = field(default_factory=list)


def encode_turns(tokenizer: QWenTokenizer, turns: Sequence[ChatTurn], system: str = DEFAULT_SYSTEM) -> EncodedChat:
    """Encodes a structured request: the ids of `make_context`, but text is never parsed for markup.

    Only the prompt's own frame has special ids, so no text can end its turn, open a file or fetch a URL. No turn is
    dropped, whatever the length.

    Args:
        tokenizer: of the model.
        turns: oldest first; all but the last have a reply.
        system: the system message.

    Returns:
        The prompt, which ends where the assistant's answer to the last turn begins.

    Raises:
        ValueError: if there is no turn, or the replies are not those of all turns but the last.
    """
    if not turns or turns[-1].reply is not None or any(turn.reply is None for turn in turns[:-1]):
        raise ValueError("a chat request needs at least one turn, and a reply in every turn but the last")
    messages: list[tuple[str, Content]] = [("system", [system])]
    for turn in turns:
        messages.append(("user", [*map(InlineImage, turn.images), turn.text]))
        if turn.reply is not None:
            messages.append(("assistant", [turn.reply]))
    return encode_messages(tokenizer, messages)


def encode_messages(
    tokenizer: QWenTokenizer,
    messages: Iterable[tuple[str, Content]],
    *,
    answer: bool = True,
    encode_text: Callable[[str], Sequence[int]] | None = None,
) -> EncodedChat:
    """Encodes messages, each `<|im_start|>role`, newline, content, `<|im_end|>`, newline.

    A model learns the frame's special tokens, the newline at the end of every message, and the assistant's texts
    (spec §7).

    Args:
        tokenizer: of the model.
        messages: role and content of each, see `encode_content`.
        answer: go on with the opening of the assistant's answer.
        encode_text: does what `tokenizer.encode_ordinary` does, faster perhaps.
    """
    encode_text = encode_text or tokenizer.encode_ordinary
    newline = tokenizer.encode_ordinary("\n")
    chat = EncodedChat([], [])

    def add(ids: Sequence[int], learned: bool) -> None:
        chat.input_ids.extend(ids)
        chat.learned.append((len(ids), learned))

    for role, content in messages:
        add([tokenizer.im_start_id], True)
        add([*tokenizer.encode_ordinary(role), *newline], False)
        images = _add_content(chat.input_ids, tokenizer, content, encode_text)
        chat.images.extend(images)
        before = sum(length for length, _ in chat.learned)
        chat.learned.extend(_stretches(before, len(chat.input_ids), images, role == "assistant"))
        add([tokenizer.im_end_id, *newline], True)
    if answer:
        add([tokenizer.im_start_id], True)
        add([*tokenizer.encode_ordinary("assistant"), *newline], False)
    return chat


def encode_message(tokenizer: QWenTokenizer, role: str, content: Content) -> list[int]:
    """Ids of one message of plain texts and images, `<|im_start|>role`, newline, content, `<|im_end|>`."""
    message = encode_messages(tokenizer, [(role, content)], answer=False).input_ids
    return message[: len(message) - len(tokenizer.encode_ordinary("\n"))]


def encode_content(tokenizer: QWenTokenizer, content: Content) -> list[int]:
    """Ids of plain texts and images, each image `Picture N: <img>`, 256 times `<imgpad>`, `</img>`, newline.

    The newline is tokenized together with the text behind it, and the label with the text before it, as in a content
    that `from_list_format` has written. An image with a label of its own is tokenized apart from texts.

    Args:
        tokenizer: of the model.
        content: images, and texts that are tokenized apart from each other: whatever one says, the ids of another are
            the same.
    """
    ids: list[int] = []
    _add_content(ids, tokenizer, content, tokenizer.encode_ordinary)
    return ids


def _add_content(
    ids: list[int], tokenizer: QWenTokenizer, content: Content, encode_text: Callable[[str], Sequence[int]]
) -> list[ImageSpan]:
    """Adds the ids of a content; returns its images."""
    span = [tokenizer.img_start_id, *[tokenizer.img_pad_id] * FEATURES_PER_IMAGE, tokenizer.img_end_id]
    images: list[ImageSpan] = []
    pending, follows_text = "", False
    for part in content:
        if isinstance(part, InlineImage):
            if part.label is None:
                ids += encode_text(pending + picture_label(len(images) + 1))
                label_start = len(ids)
            else:
                ids += encode_text(pending)
                label_start = len(ids)
                ids += encode_text(part.label)
            images.append(ImageSpan(len(ids) + 1, part.image, label_start))
            ids += span
            pending = "\n" if part.label is None else ""
        elif follows_text:
            ids += encode_text(pending)
            pending = part
        else:
            pending += part
        follows_text = isinstance(part, str)
    ids += encode_text(pending)
    return images


def _stretches(start: int, stop: int, images: Sequence[ImageSpan], learned: bool) -> list[tuple[int, bool]]:
    """The stretches of a content's ids, in which images are not learned."""
    stretches = []
    for image in images:
        end = image.start + FEATURES_PER_IMAGE + 1
        stretches += [(image.label_start - start, learned), (end - image.label_start, False)]
        start = end
    return [*stretches, (stop - start, learned)]


def make_context(
    tokenizer: QWenTokenizer,
    query: str,
    history: Sequence[tuple[str, str | None]] | None = None,
    system: str = "",
    max_window_size: int = 6144,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """Encodes a chat in hand-written markup, as the original does (spec §6.1).

    Contents may hold image tags; `<|im_end|>` and the like in them are plain text. Not for other people's text: it
    could name files.

    Args:
        tokenizer: of the model.
        query: the user's message.
        history: (query, reply) of earlier turns, oldest first.
        system: the system message.
        max_window_size: as many of the newest turns of the history are kept as make, with the system message, fewer
            tokens than this. The query always stays.
        chat_format: "chatml", or "raw" for the query alone, with all special tokens recognised.

    Returns:
        The prompt as text and as token ids.

    Raises:
        NotImplementedError: for another chat format.
        ValueError, TypeError: for broken markup, as `QWenTokenizer.encode_markup`.
    """
    if chat_format == "raw":
        return query, tokenizer.encode_markup(query)
    _require_chatml(chat_format)
    newline = tokenizer.encode_ordinary("\n")
    image_tags = frozenset(tokenizer.IMAGE_ST)

    def message(role: str, content: str) -> tuple[str, list[int]]:
        ids = [*tokenizer.encode_ordinary(role), *newline, *tokenizer.encode_markup(content, image_tags)]
        return f"{IM_START}{role}\n{content}{IM_END}", [tokenizer.im_start_id, *ids, tokenizer.im_end_id]

    system_text, system_ids = message("system", system)
    kept_text, kept_ids = "", []
    for turn_query, turn_reply in reversed(history or ()):
        query_text, query_ids = message("user", turn_query)
        # Without a reply nothing stands between this newline and the next turn's (as in the original).
        reply_text, reply_ids = ("", []) if turn_reply is None else message("assistant", turn_reply)
        turn_ids = [*newline, *query_ids, *newline, *reply_ids]
        if len(system_ids) + len(turn_ids) + len(kept_ids) >= max_window_size:
            break
        kept_text = f"\n{query_text}\n{reply_text}{kept_text}"
        kept_ids = turn_ids + kept_ids
    query_text, query_ids = message("user", query)
    text = f"{system_text}{kept_text}\n{query_text}\n{IM_START}assistant\n"
    opening = [tokenizer.im_start_id, *tokenizer.encode_ordinary("assistant"), *newline]
    return text, [*system_ids, *kept_ids, *newline, *query_ids, *newline, *opening]


def trim_answer(tokenizer: QWenTokenizer, answer_ids: Sequence[int]) -> list[int]:
    """The generated ids up to the first `<|im_start|>` or `<|im_end|>`, without `<|endoftext|>` (padding) at the end.

    Unlike the original it keeps the last token of an answer that nothing has ended: one cut by `max_new_tokens`.
    """
    ids = list(answer_ids)
    end = next((i for i, id_ in enumerate(ids) if id_ in (tokenizer.im_start_id, tokenizer.im_end_id)), len(ids))
    while end > 0 and ids[end - 1] == tokenizer.eod_id:
        end -= 1
    return ids[:end]


def decode_answer(
    tokenizer: QWenTokenizer, answer_ids: Sequence[int], chat_format: str = "chatml", errors: str = "replace"
) -> str:
    """The text of an answer, without whitespace around it (spec §6.4).

    Unlike the original it decodes the generated ids on their own: a prompt that is not NFC costs the answer nothing.

    Args:
        tokenizer: of the model.
        answer_ids: generated ids, the prompt not among them.
        chat_format: "chatml" or "raw".
        errors: what happens to bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        NotImplementedError: for another chat format.
        ValueError, KeyError: for an `<img>` without `</img>`, and for ids that have no token.
    """
    if chat_format == "raw":
        return _text_of(tokenizer, list(answer_ids), errors).replace(ENDOFTEXT, "").strip()
    _require_chatml(chat_format)
    return _text_of(tokenizer, trim_answer(tokenizer, answer_ids), errors).strip()


def _text_of(tokenizer: QWenTokenizer, ids: list[int], errors: str) -> str:
    return cast(str, tokenizer.decode(ids, errors=errors))  # of one list of ids it is one text


def get_stop_words_ids(chat_format: str, tokenizer: QWenTokenizer) -> list[list[int]]:
    """The token sequences that end an answer.

    Raises:
        NotImplementedError: for another chat format than "chatml" and "raw".
    """
    if chat_format == "raw":
        return [tokenizer.encode_markup("Human:"), [tokenizer.eod_id]]
    _require_chatml(chat_format)
    return [[tokenizer.im_end_id], [tokenizer.im_start_id]]


class StopWords(StoppingCriteria):
    """Ends the generation of a row when it, the prompt included, ends with one of some token sequences.

    Unlike the original, which forces one more token, an end-of-text, it stops at the stop word itself.

    Args:
        stop_words_ids: token ids of each stop word.

    Raises:
        ValueError: if this is not a non-empty list of non-empty sequences of token ids.
    """

    def __init__(self, stop_words_ids: Sequence[Sequence[int]]):
        if not isinstance(stop_words_ids, list | tuple) or not stop_words_ids:
            raise ValueError(f"stop_words_ids must be a non-empty list of token sequences, not {stop_words_ids!r}")
        for word in stop_words_ids:
            if not isinstance(word, list | tuple) or not word:
                raise ValueError(f"a stop word must be a non-empty sequence of token ids, not {word!r}")
            if not all(isinstance(id_, int) and id_ >= 0 for id_ in word):
                raise ValueError(f"a stop word must consist of token ids, not {word!r}")
        self.stop_words = [torch.tensor(word) for word in stop_words_ids]

    # transformers declares a tuple of scores, but gives a tensor; and no operation is said to return a BoolTensor.
    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Which rows of input_ids [batch, positions] are done: bool [batch]."""
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for word in self.stop_words:
            if len(word) <= input_ids.shape[1]:
                done |= (input_ids[:, -len(word) :] == word.to(input_ids.device)).all(dim=1)
        return done


def _require_chatml(chat_format: str) -> None:
    if chat_format != "chatml":
        raise NotImplementedError(f"Unknown chat format {chat_format!r}: there are 'chatml' and 'raw'")
