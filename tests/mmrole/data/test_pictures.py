"""Pictures of training samples told from text: as this data set, Qwen-VL, ms-swift and LLaVA write them, and others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.data.pictures import Picture, read_conversation
from mmrole.data.prompts import picture_markup
from mmrole.data.records import TrainingRecord

A, B = "images/a.jpg", "images/b.jpg"


def conversation(*values: str, **fields: object):
    turns = [{"from": ("user", "assistant")[number % 2], "value": value} for number, value in enumerate(values)]
    return read_conversation(TrainingRecord.from_json({"conversations": turns} | fields))


def as_read(turn) -> str:
    """A turn as the model reads it, pictures in angle brackets."""
    return "".join(f"{part.label}<{part.path}>" if isinstance(part, Picture) else part for part in turn.content)


@pytest.mark.parametrize(
    "value",
    [
        f"Picture 1: <img>{A}</img>\nWhat is it?",
        f"Picture 1:<img>{A}</img>\nWhat is it?",  # ms-swift
        f"Picture 1: <img>{A}</img>\r\nWhat is it?",  # Windows
        f"<img>{A}</img>\nWhat is it?",  # the chat example of Qwen-VL's README
        f"<img>{A}</img>What is it?",
        f"\n Picture 1: <img>{A}</img>\n\nWhat is it?",
        f"picture 3 : <img>{A}</img> What is it?",
        f"图片1：<img>{A}</img>\nWhat is it?",
        f"Image: <img>{A}</img>\nWhat is it?",
        f"Picture 1: <img>{A}</img>",
    ],
)
def test_a_picture_at_the_beginning_is_read_as_it_is_written(value):
    turn, _ = conversation(value, "A boat.").turns
    assert as_read(turn) == value.replace("<img>", "<").replace("</img>", ">")
    ((start, end),) = [picture.span for picture in turn.pictures]
    assert value[start:end] == A
    assert turn.text in ("What is it?", " What is it?", "\nWhat is it?", "")
    assert "".join(value[start:end] for start, end in turn.spans) == value.partition("</img>")[2]


def test_tags_in_capitals_are_tags():
    turn, _ = conversation(f"<IMG>{A}</Img>\nWhat?", "A boat.").turns
    assert as_read(turn) == f"<{A}>\nWhat?"


def test_numbers_are_those_of_the_file():
    read = conversation(
        f"Picture 1: <img>{A}</img>\nWhat?", "A boat.", f"Picture 2: <img>{B}</img>\nAnd this?", "A quay."
    )
    assert [as_read(turn) for turn in read.turns] == [
        f"Picture 1: <{A}>\nWhat?",
        "A boat.",
        f"Picture 2: <{B}>\nAnd this?",
        "A quay.",
    ]
    assert not read.faults


@given(count=st.integers(1, 3), text=st.text())
def test_published_turns_are_read_back(count, text):
    value = picture_markup([A] * count) + text
    (turn, _) = conversation(value, "Yes.").turns
    assert [picture.path for picture in turn.pictures][:count] == [A] * count
    assert as_read(turn).startswith("\n".join(f"Picture {number}: <{A}>" for number in range(1, count + 1)))


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("What is it?", "Picture 1: <a.jpg>\nWhat is it?"),
        ("<image>\nWhat is it?", "Picture 1: <a.jpg>\nWhat is it?"),  # LLaVA
        ("<image>\r\nWhat is it?", "Picture 1: <a.jpg>\r\nWhat is it?"),
        ("<image>What is it?", "Picture 1: <a.jpg>\nWhat is it?"),  # ms-swift
        ("What is it?\n<image>", "What is it?\nPicture 1: <a.jpg>"),
        ("Look at <image>, please.", "Look at Picture 1: <a.jpg>, please."),
    ],
)
@pytest.mark.parametrize(
    "fields", [{"image": "a.jpg"}, {"image": ["a.jpg"]}, {"images": ["a.jpg"]}, {"images": [{"path": "a.jpg"}]}]
)
def test_images_of_a_field_take_the_places_of_placeholders(value, read, fields):
    found = conversation(value, "A boat.", **fields)
    assert (as_read(found.turns[0]), found.faults) == (read, [])
    assert [picture.span for picture in found.pictures] == [None]


def test_several_images_of_a_field():
    fields = {"images": ["a.jpg", "b.jpg"]}
    for values, read in (
        (["Compare."], ["Picture 1: <a.jpg>\nPicture 2: <b.jpg>\nCompare."]),
        (["<image><image>Compare."], ["Picture 1: <a.jpg>\nPicture 2: <b.jpg>\nCompare."]),
        (["<image>\n<image>\nCompare."], ["Picture 1: <a.jpg>\nPicture 2: <b.jpg>\nCompare."]),
        (["<image>\nThis?", "<image>\nThat?"], ["Picture 1: <a.jpg>\nThis?", "Picture 2: <b.jpg>\nThat?"]),
    ):
        found = conversation(*(text for value in values for text in (value, "Yes.")), **fields)
        assert ([as_read(turn) for turn in found.turns[::2]], found.faults) == (read, [])


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        (["<image>\nWhat?"], {}),
        (["<image>\n<image>\nWhat?"], {"image": "a.jpg"}),
        (["<image>\nWhat?"], {"images": ["a.jpg", "b.jpg"]}),
        ([f"Picture 1: <img>{A}</img>\nWhat?", "Yes.", "<image>\nAnd this?"], {}),
        ([f"What is <img>{A}</img>?"], {}),
        ([f"Picture 1: <img>{A}</img>\nIs it <img>{B}</img>?"], {}),
        (["What?", f"This: <img>{A}</img>"], {}),
        (["What?"], {"system": f"Look at <img>{A}</img>."}),
        (["<video>\nWhat?"], {}),
        (["<audio>What?"], {}),
        (["What?"], {"videos": ["a.mp4"]}),
        ([f"Picture 1: <img>{A}</img>\nWhat?"], {"audio": "a.wav"}),
    ],
)
def test_other_pictures_are_faults(values, fields):
    assert len(conversation(*values, *["Yes."] * (len(values) % 2), **fields).faults) == 1


def test_a_record_that_names_its_pictures_can_quote_markup():
    quoted = f"He wrote <img>{B}</img>, <image> and <video>."
    for value in (f"Picture 1: <img>{A}</img>\n{quoted}", quoted.replace("<image>", "it")):
        read = conversation(value, f"I see <img>{B}</img>.", image="a.jpg")
        assert (read.faults, read.quotes) == ([], True)
        assert [picture.path.removeprefix("images/") for picture in read.pictures] == ["a.jpg"]
        assert read.turns[0].text.startswith("He wrote <img>")


@pytest.mark.parametrize("text", ["<img>", "</img> a <img>", "<img src='a.jpg'>", "a < b", "<Image 1>", "<images>"])
def test_what_only_looks_like_a_picture_is_text(text):
    read = conversation(text, text)
    assert (read.faults, read.pictures, read.turns[0].content) == ([], [], (text,))


def test_hostile_texts_take_linear_time():
    for piece in ("<img>", "</img>", " ", "Picture 1: ", "<img></img>", "<image>", "\n"):
        value = piece * (500_000 // len(piece)) + "x"
        conversation(value, "Yes.")
