"""The lengths of samples: those of the whole message encoded at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.checks.lengths import load_lengths
from data_utils.description.sample_tokens import SampleTokens, load_tokenizer
from mmrole.base.files import read_json
from mmrole.data.pictures import Picture
from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM
from mmrole.qwen_vl.message_encoding import InlineImage, encode_messages


@pytest.fixture(scope="module")
def tokenizer(mini_vocabulary):
    return load_tokenizer(mini_vocabulary)


@pytest.fixture(scope="module")
def lengths(mini_vocabulary):
    return load_lengths(mini_vocabulary, most=3072)


@given(
    speaker=st.sampled_from(["system", "user", "assistant"]),
    text=st.text(st.sampled_from("ab ,.\n\r\t1号\u0301'")),
    images=st.integers(0, 2),
)
def test_messages_are_counted_as_encoded(tokenizer, lengths, speaker, text, images):
    labels = ["Picture 1: ", "\nPicture 2: "][:images]
    content = (*(Picture("a.jpg", label) for label in labels), "\n" * bool(images) + text)
    message = speaker, [*map(InlineImage, range(images)), text]
    assert lengths.tokens([(speaker, content)]) == len(encode_messages(tokenizer, [message], answer=False).input_ids)


def test_published_samples_are_counted_as_for_training(shared, tokenizer, lengths):
    encoder = SampleTokens(tokenizer)
    for sample in read_json(shared / "mmrole/eval/in-test_answers/gpt-4-turbo/inter-role_test.json")[:12]:
        question, answer = (turn["value"] for turn in sample["conversations"])
        picture = Picture(sample["image"], "Picture 1: ")
        chat = [("system", (DEFAULT_SYSTEM,)), ("user", (picture, "\n" + question)), ("assistant", (answer,))]
        assert lengths.tokens(chat) == encoder.encode(sample)[1].total
