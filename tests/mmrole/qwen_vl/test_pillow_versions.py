"""The pixels that the model is given are the same bytes under every Pillow that the requirements allow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrole.qwen_vl.image_processing import load_image

DIGESTS = """
import hashlib, sys, PIL
from mmrole.qwen_vl.image_processing import preprocess
print(PIL.__version__)
for file in sys.argv[1:]:
    print(hashlib.sha256(preprocess([file]).numpy().tobytes()).hexdigest(), file)
"""


@pytest.fixture(scope="module")
def pictures(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of many shapes without loss, since decoders of JPEG differ: the golden ones, noise, some published."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [repository / "tests/golden/images/files", repository.parent / "shared/mmrole/images"]
    found = sorted(
        file for root in files for file in root.rglob("*") if file.suffix in (".jpg", ".png", ".bmp", ".gif")
    )
    for number, file in enumerate(found):
        if file.suffix == ".jpg":
            load_image(file).save(folder / f"{number}.png", compress_level=1)
        else:
            shutil.copy(file, folder / f"{number}{file.suffix}")
    noise = np.random.RandomState(5)
    for width, height in ((447, 450), (200, 300), (31, 1000), (449, 460), (600, 1300), (1300, 600), (448, 900)):
        pixels = noise.randint(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}x{height}.png", compress_level=1)
    return sorted(folder.iterdir())


def digests(pictures: list[Path], pillow: Path | None = None) -> tuple[str, list[str]]:
    """Pillow's version, and a digest of each picture's pixels; with the Pillow in a folder, or the installed one."""
    environment = os.environ | ({} if pillow is None else {"PYTHONPATH": str(pillow)})
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, *map(str, pictures)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, *lines = done.stdout.splitlines()
    return version, lines


@pytest.mark.long
def test_oldest_and_newest_pillow(repository, pictures, tmp_path):
    oldest = re.search(r"^pillow>=([\d.]+)", (repository / "requirements.txt").read_text(), re.M)[1]
    _, expected = digests(pictures)
    assert len(expected) == len(pictures) > 30
    versions = []
    for name, wanted in (("oldest", f"pillow=={oldest}.*"), ("newest", "pillow")):
        folder = tmp_path / name
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted]
        subprocess.run(command, check=True)
        version, found = digests(pictures, folder)
        assert found == expected, version
        versions.append(version)
    assert versions[0].startswith(f"{oldest}.")
    assert versions[0] != versions[1]
