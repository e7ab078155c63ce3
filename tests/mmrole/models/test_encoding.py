"""Chats as token ids: turns, images between texts, and quotations that change nothing around them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.messages import Message, Quotation, one_turn
from mmrole.models.encoding import encode_chat
from mmrole.qwen_vl import QWenTokenizer
from mmrole.qwen_vl.chat_format import ChatTurn
from mmrole.qwen_vl.chat_format import encode_turns as encode_turns

texts = st.text("\n\r ab!\u0301é中<|", max_size=8)


class Shown:
    """An image that nothing opens."""


@pytest.fixture(scope="module")
def tokenizer(mini_vocabulary) -> QWenTokenizer:
    return QWenTokenizer(mini_vocabulary)


@given(texts, texts, texts)
def test_turns_are_those_of_the_chat_format(tokenizer, first, reply, second):
    shown = Shown()
    messages = [*one_turn("Play.", shown, first), Message("assistant", (reply,)), Message("user", (second,))]
    chat = encode_chat(tokenizer, messages)
    expected = encode_turns(tokenizer, [ChatTurn(first, [shown], reply), ChatTurn(second)], "Play.")
    assert chat == expected


@given(texts, texts, texts)
def test_images_stand_between_texts_as_in_the_list_format(tokenizer, before, between, behind):
    first, second = Shown(), Shown()
    chat = encode_chat(tokenizer, one_turn("", before, first, between, second, behind))
    markup = f"{before}Picture 1: <img></img>\n{between}Picture 2: <img></img>\n{behind}"
    ids = tokenizer.encode_markup(markup)
    start = chat.input_ids.index(tokenizer.img_start_id) - ids.index(tokenizer.img_start_id)
    assert chat.input_ids[start : start + len(ids)] == ids
    assert [span.image for span in chat.images] == [first, second]


@pytest.mark.parametrize("behind", [("\n\nThe end.",), (Shown(),), (Quotation("x"), "y"), ()])
@given(before=texts, quoted=texts)
def test_a_quotation_changes_nothing_around_it(tokenizer, behind, before, quoted):
    def encode(text: str) -> list[int]:
        return encode_chat(tokenizer, one_turn("", Shown(), before, Quotation(text), *behind)).input_ids

    breaks = "\n\n" if behind and isinstance(behind[0], str) else ""
    apart, nothing = (len(tokenizer.encode_ordinary(text + breaks)) for text in (quoted, ""))
    ids, without = encode(quoted), encode("")
    close = 4 + len(tokenizer.encode_ordinary("assistant"))  # <|im_end|> and the opening of the answer
    start = len(encode_chat(tokenizer, one_turn("", Shown(), before)).input_ids) - close
    assert ids[start : start + apart] == tokenizer.encode_ordinary(quoted + breaks)
    assert (ids[:start], ids[start + apart :]) == (without[:start], without[start + nothing :])
