"""Reading training files: markup and text, images below the folder only, all problems together."""

import json
import os
from pathlib import Path

import pytest

from data_utils.checks.checker import Checker
from data_utils.checks.forms import Form
from mmrole.base.errors import UserError
from mmrole.data.messages import LabelledImage, Message
from mmrole.training.samples import read_samples


def record(value: str, answer: str = "A ship.", **fields: object) -> dict:
    turns = [{"from": "user", "value": value}, {"from": "assistant", "value": answer}]
    return {"id": "one", "conversations": turns} | fields


@pytest.fixture
def write(tmp_path: Path):
    def write(*records: object) -> Path:
        file = tmp_path / "train.json"
        file.write_text(json.dumps(records))
        return file

    return write


def images(turn: Message) -> list[Path]:
    return [part.image for part in turn.content if isinstance(part, LabelledImage)]


def test_markup_is_a_leading_run_in_user_turns_only(write, picture_dir):
    value = "Picture 1: <img>images/0.png</img>\nPicture 2: <img>images/1.png</img>\nSee <img>images/0.png</img>\n"
    file = write(record(value, value, system="Be brief.", images=["0.png", "1.png"]))
    (sample,) = read_samples(file, picture_dir)
    first, second = (picture_dir.resolve() / f"{number}.png" for number in range(2))
    shown = (LabelledImage(first, "Picture 1: "), LabelledImage(second, "\nPicture 2: "))
    assert sample.turns == (
        Message("user", (*shown, "\nSee <img>images/0.png</img>\n")),
        Message("assistant", (value,)),
    )
    assert sample.quotes
    assert sample.system == "Be brief."
    assert str(sample.where).endswith("train.json[0] (id 'one')")


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "0.png"},
        {"images": ["images/0.png"], "value": "<image>\nWhat?"},
        {"image": "0.png", "value": "Picture 1: <img>images/0.png</img>\nWhat?"},
    ],
)
def test_the_image_field(write, picture_dir, fields):
    (sample,) = read_samples(write(record(**{"value": "What?"} | fields)), picture_dir)
    assert sample.turns[0].content == (LabelledImage(picture_dir.resolve() / "0.png", "Picture 1: "), "\nWhat?")


def test_a_sample_without_image_or_optional_fields(write, picture_dir):
    (sample,) = read_samples(write({"conversations": record("Hi")["conversations"]}), picture_dir)
    assert images(sample.turns[0]) == []
    assert sample.system is None


def test_a_path_is_relative_to_the_current_folder(write, picture_dir, monkeypatch):
    monkeypatch.chdir(picture_dir.parent)
    os.symlink(picture_dir, picture_dir.parent / "stills")
    try:
        for folder in ("stills", Path("stills"), picture_dir.parent / "stills"):
            (sample,) = read_samples(write(record("Picture 1: <img>stills/0.png</img>\nWhat?")), folder)
            assert images(sample.turns[0]) == [picture_dir.resolve() / "0.png"]
    finally:
        os.unlink(picture_dir.parent / "stills")


@pytest.mark.parametrize("decode_images", [True, False])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("images/2.png", "is not in"),
        ("images/../images/0.png", "has '..'"),
        ("images/", "is empty"),
        ("0.png", "is not below the image folder"),
        ("/etc/passwd", "is not below the image folder"),
        ("https://example.org/a.png", "is not below the image folder"),
        ("images/https://example.org/a.png", "is a URL"),
    ],
)
def test_paths_that_are_refused(write, picture_dir, path, problem, decode_images):
    file = write(record("Hi"), record(f"Picture 1: <img>{path}</img>\nWhat?"))
    with pytest.raises(UserError, match=problem) as error:
        read_samples(file, picture_dir, decode_images=decode_images)
    assert "train.json[1] (id 'one')" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_found(write, picture_dir, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.png").write_bytes((picture_dir / "0.png").read_bytes()[:200])
    file = write(record("Picture 1: <img>images/broken.png</img>\nWhat?"))
    with pytest.raises(UserError, match="cannot be decoded"):
        read_samples(file, folder)
    assert read_samples(file, folder, decode_images=False)


def test_all_problems_come_together(write, picture_dir):
    assistant_first = {"conversations": [{"from": "assistant", "value": "I"}, {"from": "user", "value": "You"}]}
    file = write(
        record("Picture 1: <img>images/none.png</img>\nWhat?"),
        assistant_first,
        record("What?", image="1.png"),
        record("Picture 1: <img>images/0.png</img>\nWhat?", image="1.png"),
        record("What?", image="../secret.png"),
        {"conversations": record("Hi")["conversations"][:1]},
    )
    with pytest.raises(UserError) as error:
        read_samples(file, picture_dir)
    text = str(error.value)
    assert "5 problems" in text
    assert all(f"train.json[{index}]" in text for index in (0, 1, 3, 4, 5))
    assert "train.json[2]" not in text


def test_no_samples_and_no_folder(write, picture_dir):
    with pytest.raises(UserError, match="holds no samples"):
        read_samples(write(), picture_dir)
    with pytest.raises(UserError, match=r"the image folder .* does not exist; give another --image_dir"):
        read_samples(write(record("Hi")), picture_dir / "none")


def test_an_image_has_one_file_however_it_is_named(write, picture_dir):
    file = write(
        record("Picture 1: <img>images/0.png</img>\nWhat?"),
        record("Picture 1: <img>images/./0.png</img>\nWhat?"),
        record("What?", image="0.png"),
    )
    assert len({sample.turns[0].content for sample in read_samples(file, picture_dir)}) == 1


@pytest.mark.parametrize(
    "written",
    [
        record("Picture 1:<img>images/0.png</img>\nWhat?"),
        record("<img>images/0.png</img>\r\nWhat?"),
        record("<img>0.png</img>\nWhat?"),
        record("<img>images/none.png</img>What?"),
        record("<img></img>What?"),
        record("What is <img>images/0.png</img>?"),
        record("What?", images=["0.png", "images/1.png"]),
        record("What?", images=["0.png", "none.png"]),
        record("What?", images=[{"path": "0.png", "bytes": None}]),
        record("What?", images=[{"bytes": "iVBORw0K"}]),
        record("What?", images={"path": "/etc/passwd"}),
        record("What?", images="https://example.org/a.png"),
        record("What?", images=5),
        record("What?", images=[], image=[]),
        record("What?", images=["0.png"], image="1.png"),
        record("<image>What?", image="0.png"),
        record("<image>What?"),
        record("<img>images/0.png</img>What?", images=["0.png", "1.png"]),
        record("<img>images/0.png</img>What?", images=["1.png"]),
        record("What?", videos=["a.mp4"]),
    ],
    ids=lambda written: (
        json.dumps(written["conversations"][0]["value"]) + " ".join(sorted(written.keys() & {"images", "image"}))
    ),
)
def test_the_check_has_no_error_exactly_where_training_reads(write, picture_dir, written):
    file = write(written)
    report = Checker(image_dir=picture_dir, form=Form.TRAINING).check_file(file)
    errors = [problem for problem in report.problems if problem.is_error]
    if errors:
        with pytest.raises(UserError, match=r"^[^\n]*$"):
            read_samples(file, picture_dir)
    else:
        (sample,) = read_samples(file, picture_dir)
        has_picture = any(map(images, sample.turns))
        assert has_picture != any(problem.kind == "no_picture" for problem in report.problems)
