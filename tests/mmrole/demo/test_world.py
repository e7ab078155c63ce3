"""The demo's world: whole, seeded, in the published layout, without leaks."""

import hashlib
import itertools
import json
import random
import subprocess
import sys

import pytest
from PIL import Image

from data_utils import build_dataset, check
from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from mmrole.demo.characters import CHINESE, make_characters
from mmrole.demo.controls import exchange_pictures
from mmrole.demo.drawings import COLOURS, COUNTS, SIDE, Scene, draw_picture
from mmrole.demo.teacher import colour_in
from mmrole.demo.world import make_world, read_world

SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, SEED, dialogues=2)
    build_dataset.main(["--data_root", str(folder), "--output_dir", str(folder / "data")])
    return folder


@pytest.fixture(scope="module")
def training(folder):
    return json.loads((folder / "data/train/train.json").read_text(encoding="utf-8"))


def test_it_passes_the_check(folder):
    assert check.main([str(folder), "--strict"]) == 0


def test_enough_characters_are_in_and_out_of_distribution():
    characters = make_characters(SEED)
    inside = [each for each in characters if each.distribution == IN_DISTRIBUTION]
    outside = [each for each in characters if each.distribution == OUT_OF_DISTRIBUTION]
    assert len(inside) >= 8
    assert len(outside) >= 3
    assert any(each.series == CHINESE for each in inside)
    assert len({each.name for each in characters}) == len({each.catchphrase for each in characters}) == len(characters)


def test_training_never_sees_what_is_out_of_distribution(tmp_path, repository):
    def step(*arguments):
        script = [sys.executable, repository / "scripts/demo_world.py", *arguments, "--folder", tmp_path]
        subprocess.run(script, check=True, capture_output=True)

    step(
        "make",
        "--seed",
        str(SEED),
        "--dialogues=2",
        "--profiles=300",
        "--pictures=2",
        "--comparisons=50",
        "--reviews=300",
    )
    build_dataset.main(["--data_root", str(tmp_path), "--output_dir", str(tmp_path / "data")])
    step("teach", "--prompts", "100")
    read = [tmp_path / name for name in ("base.json", "comparisons.json", "critic.json", "vocabulary.txt")]
    read += [*(tmp_path / "data/train").glob("*.json"), *(tmp_path / "teacher").rglob("*.json")]
    texts = {path: path.read_text(encoding="utf-8") for path in read}
    assert len(texts) > 30
    for character in (each for each in make_characters(SEED) if each.distribution == OUT_OF_DISTRIBUTION):
        assert [path for path, text in texts.items() if character.catchphrase in text] == []
        assert f"{character.name} is " not in texts[tmp_path / "data/train/train.json"]


def test_no_two_pictures_are_alike(folder):
    pictures = list((folder / "images").rglob("*.png"))
    assert len({hashlib.sha256(Image.open(path).tobytes()).digest() for path in pictures}) == len(pictures)


@pytest.mark.parametrize("count", COUNTS)
def test_things_in_a_picture_do_not_touch(count):
    chance = random.Random(count)
    for _ in range(50):
        image = draw_picture(Scene("black", "square", "middle", count), chance).convert("L")
        column = [image.getpixel((SIDE // 2, row)) < 128 for row in range(SIDE)]
        assert sum(after and not before for before, after in itertools.pairwise(column)) == count


def test_an_exchanged_picture_is_another_one(training):
    exchanged = exchange_pictures(training, random.Random(0))
    assert {sample["image"] for sample in exchanged} == {sample["image"] for sample in training}
    assert all(sample["image"] != sample["reference_image"] for sample in exchanged)


def test_the_colour_is_never_told_before_it_is_asked_for(training, folder):
    world = read_world(folder)
    asked = 0
    for sample in training:
        question, reference = (turn["value"] for turn in sample["conversations"])
        colour = colour_in(reference)
        if colour is not None:
            asked += 1
            assert colour == world.scenes[sample["image"]].colour
            assert colour_in(question) is None, question
    assert asked > len(training) / 3
    assert set(COLOURS) == {world.scenes[sample["image"]].colour for sample in training}


def test_a_world_that_was_written_is_read_again(tmp_path):
    made = make_world(tmp_path, SEED, dialogues=2)
    assert read_world(tmp_path) == made


def test_the_same_seed_gives_the_same_world(folder, tmp_path):
    make_world(tmp_path, SEED, dialogues=2)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
