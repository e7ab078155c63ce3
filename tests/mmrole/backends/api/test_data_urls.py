"""Pictures as data URLs: what a server decodes is what a local model sees."""

import base64
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrole.backends.api.data_urls import data_url
from mmrole.base.errors import UserError
from mmrole.base.pillow import decode
from mmrole.data.image_file import ImageFile

MOST = 1 << 20


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    image = Image.new("RGB", size, "teal")
    image.paste("gold", (0, 0, 5, 3))
    return image.convert(mode)


def opened(url: str) -> tuple[str, bytes]:
    head, data = url.split(",")
    assert head.startswith("data:image/")
    assert head.endswith(";base64")
    return head.removeprefix("data:image/").removesuffix(";base64"), base64.b64decode(data, validate=True)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif"])
def test_what_servers_read_is_sent_as_it_is(tmp_path, name):
    path = tmp_path / name
    picture("L" if name == "a.gif" else "RGB").save(path)
    if Image.open(path).mode in ("RGB", "L"):
        type_, data = opened(data_url(ImageFile.of(path), MOST))
        assert data == path.read_bytes()
        assert type_ == {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    assert data_url(path, MOST) == data_url(ImageFile.of(path), MOST)


def orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.bmp", "RGB", {}),
        ("a.tiff", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "P", {}),
        ("a.png", "I;16", {}),
        ("a.jpg", "CMYK", {"quality": 100}),
        ("a.jpg", "RGB", {"exif": orientation(), "quality": 100}),
        ("a.webp", "RGB", {"exif": orientation(), "lossless": True}),
        ("a.gif", "P", {"save_all": True, "append_images": [Image.new("RGB", (12, 8), "red")]}),
        ("a.webp", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (12, 8), "red")], "lossless": True}),
        ("a.png", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (12, 8), "red")]}),
    ],
)
def test_what_servers_may_read_otherwise_is_sent_as_its_pixels(tmp_path, name, mode, options):
    path = tmp_path / name
    (picture("L").convert(mode) if mode == "I;16" else picture(mode)).save(path, **options)
    type_, data = opened(data_url(path, MOST))
    assert type_ == ("jpeg" if name == "a.jpg" else "png")
    sent, seen = Image.open(io.BytesIO(data)), decode(path)
    assert (sent.mode, sent.size, getattr(sent, "n_frames", 1)) == ("RGB", seen.size, 1)
    differences = [abs(a - b) for a, b in zip(sent.tobytes(), seen.tobytes(), strict=True)]
    assert max(differences) <= (24 if type_ == "jpeg" else 0)
    assert not sent.getexif()


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 5000))
def test_a_large_picture_is_made_so_small_and_keeps_its_shape(width, height, most):
    _, data = opened(data_url(Image.new("RGB", (width, height)), most))
    sent = Image.open(io.BytesIO(data)).size
    assert sent[0] * sent[1] <= most
    if width * height <= most:
        assert sent == (width, height)
    elif min(sent) > 20:
        assert sent[0] / sent[1] == pytest.approx(width / height, rel=0.15)


def test_of_a_file(tmp_path):
    picture(size=(400, 100)).save(tmp_path / "a.jpg")
    type_, data = opened(data_url(tmp_path / "a.jpg", 10_000))
    assert type_ == "jpeg"
    assert Image.open(io.BytesIO(data)).size == (200, 50)


def test_what_cannot_be_sent(tmp_path):
    path = Path(tmp_path / "a.png")
    picture().save(path)
    file = ImageFile.of(path)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a.png is another picture than when this job began"):
        data_url(file, MOST)
    with pytest.raises(UserError, match=r"a.png: the picture cannot be read"):
        data_url(path, MOST)
