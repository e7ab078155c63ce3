"""Reading training files: markup and text, images below the folder only, all problems together."""

import json
import os
from pathlib import Path

import pytest

from data_utils.errors import UserError
from mmrole.training.samples import TrainingTurn, read_samples


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


def test_markup_is_a_leading_run_in_user_turns_only(write, picture_dir):
    value = "Picture 1: <img>images/0.png</img>\nPicture 2: <img>images/1.png</img>\nSee <img>images/0.png</img>\n"
    (sample,) = read_samples(write(record(value, value, system="Be brief.")), picture_dir)
    first, second = (picture_dir.resolve() / f"{number}.png" for number in range(2))
    assert sample.turns == (
        TrainingTurn("user", "See <img>images/0.png</img>\n", (first, second)),
        TrainingTurn("assistant", value),
    )
    assert sample.system == "Be brief."
    assert str(sample.where).endswith("train.json[0] (id 'one')")


@pytest.mark.parametrize(
    "fields", [{"image": "0.png"}, {"image": "0.png", "value": "Picture 1: <img>images/0.png</img>\nWhat?"}]
)
def test_the_image_field(write, picture_dir, fields):
    (sample,) = read_samples(write(record(**{"value": "What?"} | fields)), picture_dir)
    assert sample.turns[0] == TrainingTurn("user", "What?", (picture_dir.resolve() / "0.png",))


def test_a_sample_without_image_or_optional_fields(write, picture_dir):
    (sample,) = read_samples(write({"conversations": record("Hi")["conversations"]}), picture_dir)
    assert sample.turns[0].images == ()
    assert sample.system is None


def test_a_path_is_relative_to_the_current_folder(write, picture_dir, monkeypatch):
    monkeypatch.chdir(picture_dir.parent)
    os.symlink(picture_dir, picture_dir.parent / "stills")
    try:
        for folder in ("stills", Path("stills"), picture_dir.parent / "stills"):
            (sample,) = read_samples(write(record("Picture 1: <img>stills/0.png</img>\nWhat?")), folder)
            assert sample.turns[0].images == (picture_dir.resolve() / "0.png",)
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
    assert len({sample.turns[0].images for sample in read_samples(file, picture_dir)}) == 1
