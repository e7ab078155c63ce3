"""Messages of plain texts and images as token ids (spec §6, §7): the one place for prompts and training samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmrole.qwen_vl.list_format import picture_label
from mmrole.qwen_vl.tokenization import QWenTokenizer
from mmrole.qwen_vl.vision import FEATURES_PER_IMAGE


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
        messages: role and content of each. An image is `Picture N: <img>`, 256 times `<imgpad>`, `</img>`, newline.
            Texts are tokenized apart from each other: whatever one says, the ids of another are the same.
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


def _add_content(
    ids: list[int], tokenizer: QWenTokenizer, content: Content, encode_text: Callable[[str], Sequence[int]]
) -> list[ImageSpan]:
    """Adds the ids of a content; returns its images.

    The newline behind an image is tokenized together with the text behind it, and the label with the text before it, as
    in a content that `from_list_format` has written. An image with a label of its own is tokenized apart from texts.
    """
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
