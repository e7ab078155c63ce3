"""Ids and labels against the published trainer's, cuts, and the line-wise tokenizer against the whole text."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.errors import Where
from mmrole.data.messages import LabelledImage, Message
from mmrole.data.pictures import read_conversation
from mmrole.data.records import TrainingRecord
from mmrole.models.qwen_vl import QwenVL
from mmrole.qwen_vl import QWenConfig, QWenTokenizer
from mmrole.qwen_vl.chat_format import ChatTurn, encode_turns
from mmrole.training.encoding import SampleEncoder
from mmrole.training.samples import TrainingSample

GOLDEN = Path(__file__).parents[2] / "golden/mmrole/preprocess_cases.json"
IMAGE = Path("/images/a.jpg")
# Published behaviour that is not kept: special tokens written in text are plain text here, no cut goes through an
# image, and what is not user and assistant in turn does not get this far (test_samples.py).
OTHERWISE = {"special_tokens_in_text", "box", "truncated_in_image", "unclosed_image", "unknown_role"} | {
    "starts_with_assistant"
}


@pytest.fixture(scope="module")
def tokenizer(real_vocabulary: Path) -> QWenTokenizer:
    return QWenTokenizer(real_vocabulary)


@pytest.fixture(scope="module")
def family(tokenizer: QWenTokenizer) -> QwenVL:
    return QwenVL(tokenizer, QWenConfig())


def sample_of(conversations: list[dict], system: str | None = None) -> TrainingSample:
    turns = []
    for speaker, value in (turn.values() for turn in conversations):
        parts = (value,)
        if speaker == "user":
            reply = {"from": "assistant", "value": "Yes."}
            record = TrainingRecord.from_json({"conversations": [{"from": "user", "value": value}, reply]})
            parts = read_conversation(record).turns[0].content
        shown = (part if isinstance(part, str) else LabelledImage(Path(part.path), part.label) for part in parts)
        turns.append(Message(speaker, tuple(shown)))
    return TrainingSample(Where(), tuple(turns), system)


def turn(speaker: str, text: str, *images: Path) -> Message:
    """A turn as the published files have it."""
    labels = ["Picture 1: ", *(f"\nPicture {number}: " for number in range(2, len(images) + 1))]
    return Message(speaker, (*map(LabelledImage, images, labels), "\n" * bool(images) + text))


def golden_cases() -> list[dict]:
    """The copies; with ../shared, the eight published samples as well."""
    shared = Path(__file__).parents[4] / "shared/golden/mmrole/preprocess_cases.json"
    cases = json.loads((shared if shared.is_file() else GOLDEN).read_text())["cases"]
    return [case for case in cases if case["name"] not in OTHERWISE]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["name"])
def test_ids_and_labels_are_the_published_ones(tokenizer, family, case):
    sample = SampleEncoder(family, case["max_len"]).encode(sample_of(case["conversations"]))
    ids, labels = (np.array(case[key]) for key in ("input_ids", "labels"))
    for start in np.flatnonzero(ids == tokenizer.img_start_id):
        ids[start + 1 : start + 257] = tokenizer.img_pad_id  # the original writes the path there
    np.testing.assert_array_equal(sample.input_ids, ids)
    np.testing.assert_array_equal(sample.targets, labels != -100)
    assert sample.targets.sum() == case["n_targets"]
    assert [rows.spans[0][0] for rows in sample.images] == (np.flatnonzero(ids == tokenizer.img_start_id) + 1).tolist()
    assert sample.is_cut == (case["name"] == "truncated_in_answer")


def test_the_system_message_can_be_another_one(tokenizer, family):
    golden = json.loads(GOLDEN.read_text())["batch"]["other_system"]
    conversations = [{"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Hi!"}]
    length = golden["input_ids"][0].index(tokenizer.eod_id)
    fixed = SampleEncoder(family, 32, golden["system_message"]).encode(sample_of(conversations, "Ignored."))
    own = SampleEncoder(family, 32, None).encode(sample_of(conversations, golden["system_message"]))
    for sample in (fixed, own):
        assert sample.input_ids.tolist() == golden["input_ids"][0][:length]
        assert sample.targets.tolist() == [label != -100 for label in golden["labels"][0][:length]]
    without = SampleEncoder(family, 32, None).encode(sample_of(conversations))
    published = SampleEncoder(family, 32).encode(sample_of(conversations, "Ignored."))
    assert without.input_ids.tolist() == published.input_ids.tolist()


def test_special_tokens_and_markup_in_texts_are_plain(tokenizer, family):
    text = "a<|im_end|>\n<|im_start|>system\nPicture 2: <img>b.jpg</img>\n<ref>c</ref><|endoftext|>"
    turns = (turn("user", text, IMAGE), turn("assistant", text))
    sample = SampleEncoder(family, 1000).encode(TrainingSample(Where(), turns))
    special = [id_ for id_ in sample.input_ids.tolist() if id_ >= tokenizer.eod_id and id_ != tokenizer.img_pad_id]
    start, end = tokenizer.im_start_id, tokenizer.im_end_id
    assert special == [start, end, start, tokenizer.img_start_id, tokenizer.img_end_id, end, start, end]
    plain = tokenizer.encode_ordinary(text)
    assert sample.input_ids[-2 - len(plain) : -2].tolist() == plain
    assert sample.targets[-2 - len(plain) :].all()


@pytest.mark.parametrize("images", [1, 2])
def test_no_cut_goes_through_an_image(tokenizer, family, images):
    turns = (turn("user", "What?", *(Path(f"{n}.jpg") for n in range(images))), turn("assistant", "A"))
    whole = SampleEncoder(family, 1000).encode(TrainingSample(Where(), turns))
    spans = [range(rows.spans[0][0] - 1, rows.spans[0][1] + 1) for rows in whole.images]  # <img> … </img>
    for length in range(1, len(whole) + 3):
        sample = SampleEncoder(family, length).encode(TrainingSample(Where(), turns))
        inside = next((span for span in spans if span.start < length < span.stop), None)
        kept = min(length, len(whole))
        if inside:
            assert len(sample) <= inside.start
            kept = len(sample)
            # Only the picture's own label goes with it.
            assert inside.start - kept == len(tokenizer.encode_ordinary("Picture 1: ")) + (inside != spans[0])
        np.testing.assert_array_equal(sample.input_ids, whole.input_ids[:kept])
        np.testing.assert_array_equal(sample.targets, whole.targets[:kept])
        assert sample.is_cut == (length < len(whole))
        assert sample.images == tuple(rows for rows in whole.images if rows.spans[0][1] + 1 <= kept)
        open_, close = (int((sample.input_ids == id_).sum()) for id_ in (tokenizer.img_start_id, tokenizer.img_end_id))
        assert open_ == close == len(sample.images)


TEXTS = st.text(st.sampled_from("ab é\u0301ﬁ 中。,.'!?<>|0\n\r\t \u2028\x85\x0b\ud800"), max_size=40)


@given(question=TEXTS, answer=TEXTS, images=st.integers(0, 2))
def test_lines_make_the_ids_of_the_whole_text(tokenizer, family, question, answer, images):
    pictures = tuple(Path(f"{number}.jpg") for number in range(images))
    turns = (turn("user", question, *pictures), turn("assistant", answer))
    sample = SampleEncoder(family, 4000).encode(TrainingSample(Where(), turns))
    prompt = encode_turns(tokenizer, [ChatTurn(question, pictures)]).input_ids
    reply = [*tokenizer.encode_ordinary(answer), tokenizer.im_end_id, *tokenizer.encode_ordinary("\n")]
    assert sample.input_ids.tolist() == prompt + reply


def test_equal_images_have_equal_keys(tokenizer, family):
    encoder = SampleEncoder(family, 1000)
    first, second, again = (
        encoder.encode(TrainingSample(Where(), (turn("user", "?", Path(name)), turn("assistant", "!"))))
        for name in ("a.jpg", "b.jpg", "a.jpg")
    )
    keys = [sample.sequence().image_keys for sample in (first, second, again)]
    np.testing.assert_array_equal(keys[0], keys[2])
    rows = keys[0] >= 0
    assert rows.sum() == 256
    assert not np.intersect1d(keys[0][rows], keys[1][rows]).size
