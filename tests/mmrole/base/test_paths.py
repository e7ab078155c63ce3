"""What is found in folders, how far links lead, and files that never end."""

import os
from pathlib import Path

import pytest

from mmrole.base.errors import UserError
from mmrole.base.paths import files_below, files_in, open_regular, resolve_below


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path):
    root = tmp_path / ".data"  # how the folder itself is called does not matter
    make(root, "a/x.json", "a/._x.json", "a/.backup/x.json", ".snapshot/hourly/a/x.json", "b.json", "a/x.txt")
    assert files_below(root, "*.json") == [root / "a/x.json", root / "b.json"]
    assert files_in(root / "a", "*.json") == [root / "a/x.json"]
    assert files_below(root / "none") == files_in(root / "none") == files_in(root / "b.json") == []


def test_linked_folders_are_entered_once(tmp_path: Path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    make(root, "z/x.json")
    make(disk, "y.json")
    for name, target in (("alias", "z"), ("linked", disk), ("up", tmp_path), ("self", "."), ("z/loop", "loop")):
        (root / name).symlink_to(target)
    (disk / "back").symlink_to(root)
    assert files_below(root, "*.json") == [root / "linked/y.json", root / "z/x.json"]


def test_a_linked_folder_reaches_as_far_as_its_target(tmp_path: Path):
    root, disk = tmp_path / "images", tmp_path / "disk/train2017"
    make(root, "a.jpg")
    make(disk, "deep/1.jpg")
    make(tmp_path, "disk/secret.jpg", "secret.jpg")
    (root / "COCO").mkdir()
    (root / "COCO/train2017").symlink_to(disk)
    for name, target in (("file.jpg", tmp_path / "secret.jpg"), ("up", ".."), ("inner", "COCO/train2017/deep")):
        (root / name).symlink_to(target)
    for name, target in (("2.jpg", "../secret.jpg"), ("out", ".."), ("3.jpg", "deep/1.jpg"), ("home", root)):
        (disk / name).symlink_to(target)
    real = disk.resolve() / "deep/1.jpg"
    for path in ("COCO/train2017/deep/1.jpg", "COCO/train2017/3.jpg", "inner/1.jpg"):
        assert resolve_below(root, path) == real
    assert resolve_below(root, "COCO/train2017/home/a.jpg") == root.resolve() / "a.jpg"
    for path in ("file.jpg", "up/secret.jpg", "COCO/train2017/2.jpg", "COCO/train2017/out/secret.jpg"):
        assert resolve_below(root, path) is None


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")  # would wait for ever
    for path, message in (
        (tmp_path / "pipe", "it is no regular file"),
        ("/dev/zero", "it is no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        ("a" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(UserError, match=f"^cannot read .*: {message}$"):
            open_regular(path)
