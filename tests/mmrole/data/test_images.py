"""Images: nothing outside the folder is opened, and what is wrong with which record is said before anything runs."""

import contextlib
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mmrole.base.errors import Problems, UserError
from mmrole.base.files import read_records, write_json
from mmrole.data.images import (
    ImagePathError,
    MissingImageError,
    has_more_than_bytes,
    open_image,
    open_photo,
    resolve_image,
    select_images,
)
from mmrole.data.records import Answer, Sample


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """A folder with images and with traps; `secret.jpg` lies beside it."""
    folder = tmp_path / "images"
    (folder / "Toy_Story/西游记 'a'").mkdir(parents=True)
    for path in (tmp_path / "secret.jpg", folder / "Toy_Story/01.jpg", folder / "Toy_Story/西游记 'a'/02.jpg"):
        Image.new("RGB", (60, 40), "navy").save(path)
    (folder / "inner.jpg").symlink_to("Toy_Story/01.jpg")
    (folder / "link.jpg").symlink_to("../secret.jpg")
    (folder / "up").symlink_to("..")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return folder


def test_a_photo_is_turned_upright_and_a_record_s_image_is_not(tmp_path: Path):
    sideways = Image.new("RGB", (60, 40), "navy")
    exif = sideways.getexif()
    exif[274] = 6  # orientation: to be turned by a quarter, clockwise
    sideways.save(tmp_path / "photo.jpg", exif=exif)
    assert open_photo(tmp_path / "photo.jpg").size == (40, 60)
    assert open_image(tmp_path / "photo.jpg").size == (60, 40)
    (tmp_path / "notes.jpg").write_text("no picture")
    for name, fault in (("gone.jpg", "no such file"), (".", "not a file"), ("notes.jpg", "cannot be decoded")):
        with pytest.raises(ImagePathError, match=fault):
            open_photo(tmp_path / name)


def test_a_photo_whose_exif_data_cannot_be_read_is_shown_as_it_lies(tmp_path: Path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.png", exif=b"Exif\0\0MM junk junk")
    assert open_photo(tmp_path / "photo.png").size == (60, 40)


def test_long_texts_in_a_picture_do_not_matter(tmp_path: Path):
    workflow = PngImagePlugin.PngInfo()
    workflow.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("RGB", (60, 40), "red").save(tmp_path / "drawn.png", pnginfo=workflow)
    assert open_image(tmp_path / "drawn.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_would_take_all_memory_to_resize_is_refused(tmp_path: Path):
    Image.new("1", (1, 100_001)).save(tmp_path / "strip.png")
    with pytest.raises(ImagePathError, match="a side of 100,001 pixels; the most are 100,000"):
        open_image(tmp_path / "strip.png")


def test_pillow_says_nothing(tmp_path: Path, repository: Path):
    """Many pixels, and transparency in a palette, make it warn."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    Image.new("P", (9, 9)).save(tmp_path / "palette.png", transparency=bytes(range(256)))
    code = "import sys\nfrom mmrole.data.images import open_image\nfor path in sys.argv[1:]: open_image(path)"
    command = [sys.executable, "-c", code, tmp_path / "large.png", tmp_path / "palette.png"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_below_the_folder(image_dir: Path):
    real = image_dir.resolve() / "Toy_Story/01.jpg"
    for image in ("Toy_Story/01.jpg", "./Toy_Story//01.jpg", "inner.jpg"):
        assert resolve_image(image_dir, image) == real
    assert resolve_image(image_dir, "Toy_Story/西游记 'a'/02.jpg").is_file()
    (image_dir.parent / "linked").symlink_to("images")
    assert resolve_image(image_dir.parent / "linked", "Toy_Story/01.jpg") == real


@pytest.mark.parametrize("image", ["Toy_Story/03.jpg", "Toy_story/01.jpg", "Toy_Story/01.jpg/x", "dangling.jpg"])
def test_missing_files(image_dir: Path, image: str):
    with pytest.raises(MissingImageError, match=r"is not in .*images$"):
        resolve_image(image_dir, image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("..", "has '..'"),
        ("../secret.jpg", "has '..'"),
        ("Toy_Story/../../secret.jpg", "has '..'"),
        ("Toy_Story/../Toy_Story/01.jpg", "has '..'"),
        ("/etc/passwd", "is absolute"),
        ("//host/share/1.jpg", "is absolute"),
        ("http://example.org/1.jpg", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("..\\secret.jpg", "has a backslash"),
        ("C:\\1.jpg", "has a backslash"),
        ("Toy_Story/01.jpg\0.png", "has control characters"),
        ("Toy_Story/\n01.jpg", "has control characters"),
        ("\ud800.jpg", "lone surrogates"),
        ("x" * 10_000, "cannot be used: .*too long"),
        ("link.jpg", "leads out of .* through a link"),
        ("up/secret.jpg", "leads out of .* through a link"),
        ("up/images/Toy_Story/01.jpg", None),
        ("loop.jpg", "cannot be used|is not in"),
        ("pipe.jpg", "is not a file"),
        ("Toy_Story", "is not a file"),
        (".", "is not a file"),
    ],
)
def test_paths_that_are_refused(image_dir: Path, image: str, message: str | None):
    if message is None:  # out and in again: what counts is where it ends
        assert resolve_image(image_dir, image) == image_dir.resolve() / "Toy_Story/01.jpg"
        return
    with pytest.raises(ImagePathError, match=message) as caught:
        resolve_image(image_dir, image)
    assert "\n" not in str(caught.value)


@given(st.text() | st.text("./\\~:-up linkjgToySr_01", max_size=12))
def test_no_text_reaches_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, image: str):
    folder = tmp_path_factory.getbasetemp() / "images"
    if not folder.exists():
        folder.mkdir()
        (folder / "up").symlink_to("..")
        (folder / "1").touch()
        (folder.parent / "1").touch()
    with contextlib.suppress(ImagePathError):
        assert resolve_image(folder, image).is_relative_to(folder.resolve())


def records(*images: str) -> list[Sample]:
    turns = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    rest = {"system": "", "conversations": turns, "role": "r", "script": "s", "other_role": "o"}
    return [Sample.from_json({"id": f"id {number}", "image": image} | rest) for number, image in enumerate(images)]


def test_all_image_problems_are_found_before_anything_runs(image_dir: Path, tmp_path: Path):
    data = (image_dir / "Toy_Story/01.jpg").read_bytes()
    (image_dir / "cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    (image_dir / "text.jpg").write_text("no image")
    (image_dir / "empty.png").touch()
    images = ["Toy_Story/01.jpg", "gone.jpg", "cut.jpg", "text.jpg", "empty.png", "../secret.jpg", "inner.jpg"]
    path = tmp_path / "x.json"
    write_json(path, [record.to_json() for record in records(*images)])

    problems = Problems()
    selection = select_images(read_records(path, Sample), image_dir, problems)
    assert [record.image for record in selection.usable] == ["Toy_Story/01.jpg", "inner.jpg"]
    assert [record.image for record in selection.missing] == ["gone.jpg"]
    assert len(problems) == 5
    faults = {
        1: f"image 'gone.jpg' is not in {image_dir}",
        2: "image 'cut.jpg' cannot be decoded: ",
        3: "image 'text.jpg' cannot be decoded: cannot identify image file",
        4: "image 'empty.png' cannot be decoded: cannot identify image file",
        5: "image '../secret.jpg' has '..'; write it relative to the image folder",
    }
    for text, (index, fault) in zip(problems.texts, faults.items(), strict=True):
        assert text.startswith(f"{path}[{index}] (id 'id {index}'): {fault}")

    problems = Problems()
    assert select_images(records("inner.jpg", "gone.jpg"), image_dir, problems, skip_missing=True).usable
    assert len(problems) == 0


def test_images_of_a_linked_folder_are_used(image_dir: Path, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    shutil.copy(image_dir / "Toy_Story/01.jpg", tmp_path / "disk/1.jpg")
    (tmp_path / "disk/2.jpg").symlink_to("../secret.jpg")
    (image_dir / "COCO").mkdir()
    (image_dir / "COCO/train2017").symlink_to(tmp_path / "disk")
    problems = Problems()
    selection = select_images(records("COCO/train2017/1.jpg", "COCO/train2017/2.jpg"), image_dir, problems)
    assert [record.image for record in selection.usable] == ["COCO/train2017/1.jpg"]
    assert [text.partition(": ")[2] for text in problems.texts] == [
        f"image 'COCO/train2017/2.jpg' leads out of {image_dir} through a link"
    ]


def test_a_wrong_image_folder_is_one_problem_even_when_images_may_be_missing(tmp_path: Path):
    problems = Problems()
    select_images(records("a.jpg", "b.jpg"), tmp_path / "imgs", problems, skip_missing=True)
    with pytest.raises(UserError, match=r"the image folder .*imgs does not exist; mend it"):
        problems.raise_if_any("never seen", "mend it")


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGBA"), ("png", "P"), ("gif", "L"), ("webp", "RGB"), ("jpg", "L")]
)
def test_images_are_decoded_into_rgb(tmp_path: Path, suffix: str, mode: str):
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (7, 5)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (7, 5))


def test_formats_that_run_other_programs_are_no_images(tmp_path: Path):
    Image.new("RGB", (7, 5)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.jpg")
    with pytest.raises(ImagePathError, match="cannot be decoded: cannot identify image file"):
        open_image(tmp_path / "x.jpg")


def test_published_records_with_their_stills(shared: Path):
    """Of the 216 In-Test samples, 58 have their still here and 158 do not, most of those COCO images."""
    usable = missing = 0
    problems = Problems()
    for kind in ("comment", "human-role", "inter-role"):
        answers = read_records(shared / f"mmrole/eval/in-test_answers/mmrole-agent/{kind}_test.json", Answer)
        selection = select_images(answers, shared / "mmrole/images", problems, skip_missing=True)
        usable += len(selection.usable)
        missing += len(selection.missing)
    assert (usable, missing, len(problems)) == (58, 158, 0)


@pytest.mark.parametrize(("there", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_missing_name_that_looks_the_same_is_hinted_at(tmp_path, there, written):
    (tmp_path / unicodedata.normalize(there, "é.png")).touch()
    with pytest.raises(MissingImageError, match=rf"did you mean the file of that name .*\(Unicode {there}\)"):
        resolve_image(tmp_path, unicodedata.normalize(written, "é.png"))


@pytest.mark.parametrize(("mode", "deep"), [("I;16", True), ("L", False), ("RGB", False), ("1", False)])
def test_pictures_that_lose_their_shades(tmp_path, mode, deep):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    assert has_more_than_bytes(tmp_path / "a.png") == deep
