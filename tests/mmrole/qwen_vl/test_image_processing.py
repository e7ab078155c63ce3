"""Images against the original's pixels, and files that are no images."""

import hashlib
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmrole.qwen_vl.image_processing import IMAGE_MEAN, IMAGE_STD, load_image, preprocess

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
LOSSY = (".jpg", ".webp")  # decoders differ by up to 2 of 255


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_golden_images(golden_cases):
    golden = json.loads((golden_cases / "images/cases.json").read_text())
    assert (golden["mean"], golden["std"]) == (list(IMAGE_MEAN), list(IMAGE_STD))
    files = [golden_cases / "images/files" / case["file"] for case in golden["cases"]]
    assert len(files) == 26
    pixels = preprocess(files)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (26, 3, 448, 448))
    for case, file, image in zip(golden["cases"], files, pixels, strict=True):
        values = (image * STD + MEAN) * 255
        exact = not file.name.endswith(LOSSY)
        if exact:
            assert sha256(np.asarray(load_image(file)).tobytes()) == case["rgb_sha256"], file
            u8 = values.round().to(torch.uint8).permute(1, 2, 0).contiguous()
            assert sha256(u8.numpy().tobytes()) == case["resized_u8_sha256"], file
        for sample in case["samples"]:
            difference = values[:, sample["y"], sample["x"]] - torch.tensor(sample["u8"])
            assert difference.abs().max() < (1e-3 if exact else 2.001), file
            if exact:
                assert image[:, sample["y"], sample["x"]].tolist() == sample["value"], file
        for statistic in ("mean", "std"):
            found = getattr(image, statistic)(dim=(1, 2))
            torch.testing.assert_close(found, torch.tensor(case[statistic]), atol=1e-5 if exact else 0.03, rtol=0)


def test_golden_resized_images_and_tensors(golden_cases):
    for file in (golden_cases / "images/resized").iterdir():
        u8 = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
        source = golden_cases / "images/files" / file.name.removesuffix(".448.png")
        found = (preprocess([source])[0] * STD + MEAN) * 255
        assert (found - u8).abs().max() < (2.001 if source.suffix in LOSSY else 1e-3), file
    for name, pixels in load_file(golden_cases / "images/pixels_fp16.safetensors").items():
        source = golden_cases / "images/files" / name
        atol = 2.001 / 255 / min(IMAGE_STD) if source.suffix in LOSSY else 0
        torch.testing.assert_close(preprocess([source])[0].half(), pixels, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("width", "height", "digest"),
    [
        (300, 500, "65edb90dce8ad5dd93af18cab33b1530a4d30275cfd50b86726a09755ffc439c"),
        (447, 449, "af8f06ccd492cc93a5413a6da31c8f498acf8c5bfdcfbe0c720c5eb8f9c32a82"),
        (13, 700, "ac41a0f1186f206b817ef5c96d8e6047c31c1e01ff78f6daec41cc76a71681ec"),
        (449, 2000, "19337e9ab3ce7ca8f309cfa9b303f2166964a776448479e2538fe54cf335eff1"),
        (1000, 40, "a86194563955432b2a182ae0a0ea96696cc6a49bd78f08fa1b9afd1612861387"),
    ],
)
def test_the_bytes_do_not_depend_on_pillow(width, height, digest):
    """Digests of Pillow 10.3 and 12.3; Pillow 13 alone takes the height of the first four before the width."""
    noise = np.random.RandomState(width).randint(0, 256, (height, width, 3), dtype=np.uint8)
    u8 = ((preprocess([Image.fromarray(noise)])[0] * STD + MEAN) * 255).round().to(torch.uint8)
    assert sha256(u8.permute(1, 2, 0).contiguous().numpy().tobytes()) == digest


def test_golden_errors(golden_cases, tmp_path):
    (tmp_path / "notimage.png").write_text("not an image")
    for case in json.loads((golden_cases / "images/errors.json").read_text()):
        path = str(tmp_path / case["path"]) if case["path"] == "notimage.png" else case["path"]
        with pytest.raises(OSError, match="image") as error:
            load_image(path)
        assert type(error.value).__name__ == case["error"]
        assert path in str(error.value)


def test_pil_images_and_paths_are_the_same(golden):
    file = golden / "images/files/palette_transparent_64x48.png"
    with Image.open(file) as image:
        pixels = preprocess([file, str(file), image])
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_other_sizes(golden):
    file = golden / "images/files/checker_32.png"
    values = (preprocess([file], size=32) * STD + MEAN) * 255
    u8 = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
    torch.testing.assert_close(values[0].round().to(torch.uint8), u8)
    assert preprocess([]).shape == (0, 3, 448, 448)


def test_urls_are_refused():
    for url in ("http://localhost/a.png", "HTTPS://localhost/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match="is a URL"):
            load_image(url)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_damaged_files(golden, tmp_path):
    sound = (golden / "images/files/rgb_80x60.png").read_bytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    jpeg = (golden / "images/files/rgb_300x500.jpg").read_bytes()
    damaged = {
        "truncated.png": sound[: len(sound) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header.png": sound[:40],
        "bytes.png": sound[:60] + bytes(len(sound) - 60),
        "bomb.png": sound[:8] + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
        "empty.png": b"",
        "nothing.jpg": jpeg[:2],
    }
    for name, data in damaged.items():
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(OSError, match=r"damaged image|too many pixels|not an image") as error:
            load_image(file)
        assert str(error.value).startswith(str(file))
        assert "\n" not in str(error.value)
    os.mkfifo(tmp_path / "pipe.png")  # would block for ever
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "pipe.png")
