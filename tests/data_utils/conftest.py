"""Fixtures of the data tools' tests: disks that are full, and a small data set."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmrole.base.files import write_json

# Gives a script its disk: the variable `folder`, and make_room(), after which there is space again.
LIMITED = """
import resource, signal, sys
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
def make_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
FULL = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "ballast").write_bytes(b"x" * 200_000)
def make_room():
    (folder / "ballast").unlink()
"""


@pytest.fixture(params=["file size limit", "full disk"])
def on_small_disk(
    request: pytest.FixtureRequest, tmp_path: Path, repository: Path
) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs Python code where about 50 kB can be written: under a limit on file sizes, and on a tmpfs of 256 kB."""
    if request.param == "file size limit":
        prefix, setup = [], LIMITED
    else:
        mount = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
        prefix, setup = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)], FULL
        if subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here")

    def run(code: str) -> subprocess.CompletedProcess:
        command = [*prefix, sys.executable, "-c", setup + code, str(tmp_path)]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True)

    return run


HARBOUR = {
    "in-distribution": {"Harbour": ["Ana", "Bo Li"], "the Bronze age": ["Cai"], "西游记": ["小船"]},
    "out-of-distribution": {"Lighthouse": ["Dee", "Eli"]},
}


def utterances(speakers: list[str], turns: int) -> list[dict]:
    return [{"role": speakers[n % 2], "value": f"{speakers[n % 2]} says {n}."} for n in range(turns)]


@pytest.fixture
def small_world(tmp_path: Path) -> Path:
    """A data set in the published layout, of four characters in distribution and two out of it; some images exist."""
    root = tmp_path / "world"
    for distribution, series in HARBOUR.items():
        folder = root / "profiles" / distribution
        profiles = {name: f"\n### {name}\nKnows the sea.\n" for names in series.values() for name in names}
        write_json(folder / "roles.json", series)
        write_json(folder / "profiles.json", profiles)
    stills = [{"image": "Harbour/01.jpg", "role_info": "Ana waves.", "place_info": "The quay.", "scene_info": ""}]
    write_json(root / "images/annotations.json", stills)
    for image in ("COCO/train2017/000000000001.jpg", "Harbour/01.jpg"):
        (root / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), "navy").save(root / "images" / image)

    def add(place: str, name: str, number: str, turns: list[dict], still: bool = False) -> None:
        source = "script" if still else "COCO"
        facts = {key: stills[0][key] for key in ("role_info", "place_info", "scene_info")} if still else {}
        image = stills[0]["image"] if still else "COCO/train2017/000000000001.jpg"
        dialogue = {"id": f"{name}_{source}{number}", "image": image, **facts, "conversations": turns}
        path = root / "dialogues" / place
        write_json(path, [*(json.loads(path.read_text("utf-8")) if path.exists() else []), dialogue])

    for name, partner in (("Ana", "Bo Li"), ("Bo Li", "Ana"), ("Cai", None), ("小船", None)):
        owner = name.replace(" ", "_")
        for number in range(3):
            question = {"from": "human", "value": "What do you see?"}
            remark = [question, *utterances([name], 1)]
            stop = 1 if number == 2 else None  # the last one of each kind is a failed generation
            add(f"in-distribution/comment/{owner}_COCO.json", f"{owner}_comment", f"_{number}", remark[:stop])
            talk = utterances(["human", name], 6)[: stop and 0]
            add(f"in-distribution/human-role/{owner}_COCO.json", f"{owner}_human-role-dialogue", f"_{number}", talk)
            if partner:
                talk = utterances([partner, name], 5)[: stop and 0]
                place = f"in-distribution/inter-role/{owner}_script.json"
                add(place, f"{owner}_role-role-dialogue", f"_{number}", talk, True)
    for name, partner in (("Dee", "Eli"), ("Eli", "Dee")):
        for still in (False, True):
            remark = [{"from": "human", "value": "What do you see?"}, *utterances([name], 1)]
            add("out-of-distribution/comment.json", f"{name}_comment", "", remark, still)
            talk = utterances(["human", name], 4)
            add("out-of-distribution/human-role.json", f"{name}_human-role-dialogue", "", talk, still)
            talk = utterances([partner, name], 4)
            add("out-of-distribution/inter-role.json", f"{name}_role-role-dialogue", "", talk, still)
    return root
