"""Chat prompts of Qwen-VL (spec §6): hand-written markup as in the original, and structured requests of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmrole.qwen_vl.bpe import ENDOFTEXT, IM_END, IM_START
from mmrole.qwen_vl.message_encoding import Content, EncodedChat, InlineImage, encode_messages
from mmrole.qwen_vl.tokenization import QWenTokenizer

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
