"""Pictures come as data URLs, of the formats of the data set, and from nowhere else."""

import base64
import gc
import io

import pytest
from fixtures.doors import png
from PIL import Image

from mmrole.base.pillow import FORMATS
from mmrole.chat.server.image_urls import Pictures
from mmrole.chat.server.refusals import Refusal


def read(url: str, most_pixels: int = 10_000) -> Image.Image:
    return Pictures().read(url, most_pixels, "here")


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_of_the_data_set(format_):
    assert read(png(format_=format_)).size == (6, 4)


def test_what_the_url_says_of_the_format_does_not_count():
    assert read(png().replace("image/png", "image/x-anything;charset=utf-8")).getpixel((0, 0)) == (0, 128, 128)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1/a.png", "here: only data:image/…;base64,… is taken; nothing is opened or fetched"),
        ("file:///etc/hostname", "only data:image"),
        ("/etc/hostname", "only data:image"),
        ("data:text/html;base64,PGI+", "only data:image"),
        ("data:image/png,raw", "only data:image"),
        ("", "only data:image"),
        ("data:image/png;base64,!!", "here: it is not base64"),
        ("data:image/png;base64,", "here: no picture that can be read (JPEG, PNG"),
        ("data:image/png;base64," + base64.b64encode(b"GIF89a").decode(), "no picture"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "no picture"),
        (png()[:-40], "here: no picture that can be read"),
    ],
)
def test_what_is_refused(url, message):
    with pytest.raises(Refusal) as refused:
        read(url)
    assert (refused.value.status, refused.value.param) == (400, "here")
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("side", "message"), [(9000, "9,000 × 9,000 pixels; at most 10,000"), (20_000, "exceeds limit")]
)
def test_too_many_pixels_are_never_decoded(side, message):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    with pytest.raises(Refusal, match=message) as refused:
        read(url)
    assert refused.value.code == "image_too_large"


def test_the_same_picture_is_one_while_it_is_used():
    pictures = Pictures()
    first = pictures.read(png(), 100, "a")
    assert pictures.read(png(), 100, "b") is first
    assert pictures.read(png(colour="red"), 100, "b") is not first
    with pytest.raises(Refusal, match="6 × 4 pixels; at most 20"):
        pictures.read(png(), 20, "b")
    del first
    gc.collect()
    assert not pictures._known
