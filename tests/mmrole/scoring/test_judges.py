"""Judges: folders that name them, settings that know them, and reviews of two that are not put together."""

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.base.errors import UserError
from mmrole.data.images import OTHER_PIXELS
from mmrole.scoring.judges import PUBLISHED, find_judge, judge_folder, judge_name
from mmrole.scoring.reviews import answers_beside

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def is_name(text: str) -> bool:
    try:
        return judge_name(text) == text
    except argparse.ArgumentTypeError:
        return False


@given(names.filter(is_name), st.sampled_from(["in-test", "out-test"]))
def test_a_folder_names_the_judge_whatever_it_is_called(judge: str, split: str):
    file = Path("/data_reviews@x", f"{split}_reviews@{judge}", "my_model", "comment_test.json")
    folder = judge_folder(file.parent)
    assert folder == (2, f"{split}_reviews", judge)
    assert answers_beside(file) == Path("/data_reviews@x", f"{split}_answers", "my_model", "comment_test.json")
    assert find_judge([file]) == (judge, False)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", "a\nb", "a\x00", "\u2028", "\ud800"])
def test_what_cannot_be_part_of_a_folders_name(name: str):
    assert not is_name(name)


def write(path: Path, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings:
        path.with_name(f"{path.name}.settings").write_text(json.dumps(settings), "utf-8")
    return path


def test_the_judge_of_files(tmp_path: Path):
    plain, other = tmp_path / "in-test_reviews", tmp_path / "out-test_reviews"
    files = [write(plain / "m/a.json"), write(other / "m/a.json", swap=True)]
    assert find_judge(files) == find_judge([tmp_path / "elsewhere/m/a.json"]) == (PUBLISHED, True)
    known = [write(plain / f"{name}/a.json", model="abc", dtype=name) for name in ("m1", "m2")]
    assert find_judge(known) == ("the model abc", True)
    assert find_judge([*known, *files]) == (f"the model abc, taken for {PUBLISHED}", True)
    adapted = write(plain / "m3/a.json", model="abc", adapter="def")
    assert find_judge([adapted]) == ("the model abc with the adapter def", True)
    other = write(plain / "m5/a.json", model="xyz", pixels=OTHER_PIXELS)
    assert find_judge([other]) == ("the model xyz", False)
    named = write(tmp_path / "in-test_reviews@people/m/a.json", model="ghi")
    assert find_judge([named]) == ("people", False)
    server = {"model": "big", "api_image_pixels": 9}
    snapshots = [
        write(plain / f"{name}/a.json", **server, noted={"reported_model": name}) for name in ("big-1", "big-2")
    ]
    silent = write(plain / "m4/a.json", **server)  # all requests have failed
    assert find_judge(snapshots[:1]) == ("big-1", False)
    assert find_judge([silent]) == (PUBLISHED, True)
    for mixed in (
        *(snapshots, [snapshots[0], files[0]], [snapshots[0], known[0]]),
        *([other, files[0]], [other, known[0]]),
        *([*known, adapted], [files[0], named], [named, write(named.parent.parent / "n/a.json", model="jkl")]),
    ):
        with pytest.raises(UserError, match=r"^reviews by different judges are not comparable: .*; give") as error:
            find_judge(mixed)
        assert len(error.value.lines) == 1
