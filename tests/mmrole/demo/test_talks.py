"""The world of the demo in real language: whole, seeded, in the published layout, without leaks."""

import json
import random

import pytest

from data_utils import build_dataset, check
from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from mmrole.demo.drawings import COLOURS, Scene
from mmrole.demo.speakers import make_speakers
from mmrole.demo.talks import QUESTIONS, caption_lessons, draw_single, make_real_world, read_real_world, spoken_reply
from mmrole.demo.teacher import colour_in

SEED = 7
DIALOGUES = {"comment": 3, "human-role": 3, "inter-role": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_real_world(folder, SEED, 9, DIALOGUES)
    build_dataset.main(["--data_root", str(folder), "--output_dir", str(folder / "data")])
    return folder


@pytest.fixture(scope="module")
def training(folder):
    return json.loads((folder / "data/train/train.json").read_text(encoding="utf-8"))


def test_it_passes_the_check(folder):
    assert check.main([str(folder), "--strict"]) == 0


def test_names_and_catchphrases_are_one_character_s_own():
    speakers = make_speakers(SEED)
    assert len({each.name for each in speakers}) == len({each.catchphrase for each in speakers}) == len(speakers)
    assert sum(each.distribution == OUT_OF_DISTRIBUTION for each in speakers) >= 12
    assert sum(each.distribution == IN_DISTRIBUTION for each in speakers) >= 60
    for speaker in speakers:
        assert speaker.catchphrase in speaker.profile
        assert colour_in(speaker.profile) is None


def test_training_never_sees_what_is_out_of_distribution(training):
    texts = json.dumps(training)
    for speaker in make_speakers(SEED):
        if speaker.distribution == OUT_OF_DISTRIBUTION:
            assert speaker.catchphrase not in texts
            assert f"{speaker.name} " not in texts


def test_every_reply_holds_the_catchphrase_and_names_no_colour_but_the_picture_s(training, folder):
    world = read_real_world(folder)
    for sample in training:
        question, answer = (turn["value"] for turn in sample["conversations"])
        assert world.catchphrases[sample["role"]] in answer
        if colour_in(answer) is not None:
            assert colour_in(answer) == world.scenes[sample["image"]].colour
            assert colour_in(question) is None


def test_pictures_of_the_test_are_not_trained_on(training, folder):
    tests = [
        sample
        for path in (folder / "data/test").rglob("*_test.json")
        for sample in json.loads(path.read_text(encoding="utf-8"))
    ]
    assert {sample["image"] for sample in tests}.isdisjoint(sample["image"] for sample in training)
    assert len(tests) == 3 * len(make_speakers(SEED, inside=9))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_reply_about_a_picture_names_its_colour(colour):
    speaker = make_speakers(SEED)[0]
    for number in range(20):
        said = spoken_reply(speaker, "picture", Scene(colour, "star", "left", 1), random.Random(number))
        assert colour_in(said) == colour
        assert f"a {colour}" not in said or colour != "orange"


def test_replies_about_other_topics_name_no_colour():
    for speaker in make_speakers(SEED):
        for topic in QUESTIONS.keys() - {"picture"}:
            assert colour_in(spoken_reply(speaker, topic, draw_single(random.Random(1)), random.Random(2))) is None


def test_lessons_have_pictures_of_their_own(tmp_path, folder):
    lessons = caption_lessons(tmp_path, random.Random(1), 8)
    assert all((tmp_path / "images" / lesson["image"]).is_file() for lesson in lessons)
    assert all(colour_in(lesson["conversations"][1]["value"]) for lesson in lessons)
    assert {lesson["image"] for lesson in lessons}.isdisjoint(read_real_world(folder).scenes)


def test_the_same_seed_gives_the_same_world(folder, tmp_path):
    made = make_real_world(tmp_path, SEED, 9, DIALOGUES)
    assert read_real_world(tmp_path) == made
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
