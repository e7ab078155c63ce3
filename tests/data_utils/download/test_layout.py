"""Every file of the data set finds its place in the layout, however it is wrapped; nothing gets out of it."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.download.layout import TOP_FOLDERS, in_layout, member_in_layout, safe_path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("data/train/train_85k.json", "data/train/train_85k.json"),
        ("MMRole/data/train/train_85k.json", "data/train/train_85k.json"),
        ("data/dialogues/in-distribution/comment/x.json", "dialogues/in-distribution/comment/x.json"),
        ("data/data/test/in-distribution/comment_test.json", "data/test/in-distribution/comment_test.json"),
        ("images/annotations.json", "images/annotations.json"),
        ("images/西游记/01.jpg", "images/西游记/01.jpg"),
        ('profiles/x/detailed_profiles/Elizabeth_"Lizzy".json', 'profiles/x/detailed_profiles/Elizabeth_"Lizzy".json'),
        ("RM_data/train/RM-train_23k.json", "RM_data/train/RM-train_23k.json"),
        ("README.md", None),
        ("data", None),
        ("data/train-00000-of-00001.parquet", None),
        ("Images/01.jpg", None),
    ],
)
def test_places(path: str, place: str | None):
    assert in_layout(PurePosixPath(path)) == (place and PurePosixPath(place))


@pytest.mark.parametrize(
    ("archive", "member", "place"),
    [
        ("images.zip", "images/Friends/01.jpg", "images/Friends/01.jpg"),
        ("images.zip", "Friends/01.jpg", "images/Friends/01.jpg"),
        ("images.tar.gz", "Friends/01.jpg", "images/Friends/01.jpg"),
        ("MMRole_dataset.zip", "MMRole_dataset/images/Friends/01.jpg", "images/Friends/01.jpg"),
        ("MMRole_dataset.zip", "README.md", None),
        ("images/COCO.zip", "COCO/train2017/1.jpg", "images/COCO/train2017/1.jpg"),
        ("images/COCO.zip", "train2017/1.jpg", "images/COCO/train2017/1.jpg"),
        ("dialogues/in-distribution.zip", "comment/x.json", "dialogues/in-distribution/comment/x.json"),
        ("data.zip", "train/train_85k.json", "data/train/train_85k.json"),
        ("data.zip", "data/train/train_85k.json", "data/train/train_85k.json"),
        ("RM_data.zip", "train/RM-train_23k.json", "RM_data/train/RM-train_23k.json"),
    ],
)
def test_places_of_members(archive: str, member: str, place: str | None):
    assert member_in_layout(PurePosixPath(archive), PurePosixPath(member)) == (place and PurePosixPath(place))


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/etc/passwd", "//host/x", "../x", "images/../../x", "images/..", "a\\..\\x", "C:/x", "C:x"),
        *("a\0b", "a\nb", "\ud800", ".bashrc", "images/.DS_Store", "__MACOSX/images/x.jpg", "images/._x.jpg"),
        *("x" * 256, "西" * 86 + "/x"),
    ],
)
def test_names_that_are_refused(name: str):
    assert safe_path(name) is None


@given(st.text(alphabet="ab./\\:\0\n~é", max_size=20))
def test_whatever_the_name_it_stays_below(name: str):
    path = safe_path(name)
    if path is not None:
        assert not path.is_absolute()
        assert Path("/root", path).resolve().is_relative_to("/root")
        assert Path("/root", path).resolve() != Path("/root")
        place = member_in_layout(PurePosixPath("images.zip"), path)
        assert place.parts[0] in TOP_FOLDERS
