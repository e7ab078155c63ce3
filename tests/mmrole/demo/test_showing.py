"""A talk beside its picture."""

import random

from mmrole.demo.drawings import Scene, draw_picture
from mmrole.demo.showing import picture_lines, talk_lines


def drawn(folder):
    folder.mkdir(exist_ok=True)
    draw_picture(Scene("red", "square", "left", 1), random.Random(1)).save(folder / "a.png")
    return folder / "a.png"


def test_a_picture_shows_where_its_thing_is(tmp_path):
    lines = picture_lines(drawn(tmp_path), coloured=False)
    assert len({len(line) for line in lines}) == 1
    assert any("##" in line[: len(line) // 2] for line in lines)
    assert not any("##" in line[len(line) // 2 :] for line in lines)


def test_in_colour_it_ends_without_colour(tmp_path):
    lines = picture_lines(drawn(tmp_path), coloured=True)
    assert all(line.startswith("\x1b[48;2;") and line.endswith("\x1b[0m") for line in lines)


def test_a_talk_stands_beside_its_picture(tmp_path):
    path = drawn(tmp_path)
    record = {
        "image": path.name,
        "role": "Mira",
        "other_role": "a curious human",
        "conversations": [
            {"from": "user", "value": "What do you see?"},
            {"from": "assistant", "value": "It is red.", "answer": "It is " + "very " * 30 + "red."},
        ],
    }
    lines = talk_lines(tmp_path, record, coloured=False)
    assert lines[0] == "images/a.png"
    assert "a curious human: What do you see?" in lines[1]
    assert "Mira: It is very" in lines[2]
    assert all(len(line) <= 110 for line in lines)
