"""The lengths of samples: those of the whole message encoded at once."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_utils import check
from data_utils.checks.lengths import load_lengths
from data_utils.description.sample_tokens import SampleTokens
from data_utils.vocabularies import load_family
from mmrole.base.files import read_json, write_json
from mmrole.data.pictures import Picture
from mmrole.qwen_vl import QWenTokenizer
from mmrole.qwen_vl.chat_format import DEFAULT_SYSTEM
from mmrole.qwen_vl.message_encoding import InlineImage, encode_messages
from mmrole.training.encoding import PUBLISHED_SYSTEM, SampleEncoder
from mmrole.training.samples import read_samples


@pytest.fixture(scope="module")
def tokenizer(mini_vocabulary):
    return QWenTokenizer(mini_vocabulary)


@pytest.fixture(scope="module")
def lengths(mini_vocabulary):
    return load_lengths(mini_vocabulary, most=3072)


@given(
    speaker=st.sampled_from(["user", "assistant"]),
    text=st.text(st.sampled_from("ab ,.\n\r\t1号\u0301'")),
    images=st.integers(0, 2),
)
def test_messages_are_counted_as_encoded(tokenizer, lengths, speaker, text, images):
    labels = ["Picture 1: ", "\nPicture 2: "][:images]
    content = (*(Picture("a.jpg", label) for label in labels), "\n" * bool(images) + text)
    messages = [("system", ["Hello."]), (speaker, [*map(InlineImage, range(images)), text])]
    counted = lengths.tokens([("system", ("Hello.",)), (speaker, content)], None)
    assert counted == len(encode_messages(tokenizer, messages, answer=False).input_ids)


def test_published_samples_are_counted_as_for_training(shared, mini_vocabulary, lengths):
    encoder = SampleTokens(load_family(mini_vocabulary), Path)
    for sample in read_json(shared / "mmrole/eval/in-test_answers/gpt-4-turbo/inter-role_test.json")[:12]:
        question, answer = (turn["value"] for turn in sample["conversations"])
        picture = Picture(sample["image"], "Picture 1: ")
        chat = [("system", (DEFAULT_SYSTEM,)), ("user", (picture, "\n" + question)), ("assistant", (answer,))]
        assert lengths.tokens(chat, None) == encoder.encode(sample)[1].total


def test_tokens_of_an_image_follow_from_its_size(tiny_vlm, tmp_path):
    for name, size in (("small.png", (64, 64)), ("large.png", (200, 90))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "damaged.png").write_bytes(b"no picture")

    def counted(image: str, **limits: bool | int) -> int:
        lengths = load_lengths(tiny_vlm("qwen3_vl"), most=9, **limits)
        assert lengths.by_size
        chat = [("system", ("Hi.",)), ("user", (Picture(image, "Picture 1: "), "\nWhat?")), ("assistant", ("A.",))]
        return lengths.tokens(chat, tmp_path)

    none = counted("none.png")
    assert none == counted("damaged.png") == counted("large.png", look_at_images=False)
    frame = 2  # begin and end of vision, less the line break
    assert counted("small.png") - none in range(4 + frame - 1, 4 + frame + 1)
    assert counted("images/large.png") - counted("small.png") == 10 - 4 == 6
    assert counted("large.png", max_pixels=2048) < counted("large.png")


@pytest.mark.parametrize("own", [True, False])
def test_training_samples_are_counted_with_the_system_message_of_their_recipe(
    own, tiny_vlm, mini_vocabulary, tmp_path, capsys
):
    """The published sentence with Qwen-VL; with other models each sample's own, if it has one."""
    talk = [{"from": "user", "value": "What do you see?"}, {"from": "assistant", "value": "Ships, my dear."}]
    said = {"system": "You keep a lighthouse. " * 9} if own else {}
    write_json(tmp_path / "train.json", [{"id": "1", **said, "conversations": talk}])
    (tmp_path / "images").mkdir()
    samples = read_samples(tmp_path / "train.json", tmp_path / "images")
    for place, system in ((mini_vocabulary, PUBLISHED_SYSTEM), (tiny_vlm("qwen3_vl"), None)):
        (encoded,) = SampleEncoder(load_family(place), 10_000, system).encode_all(samples)
        flags = ("--tokenizer", place, "--max_length", 1, "--image_dir", tmp_path / "images")
        assert check.main([str(argument) for argument in (tmp_path / "train.json", *flags)]) == 0
        assert f": {len(encoded)} tokens; at most 1 are wanted" in capsys.readouterr().out
