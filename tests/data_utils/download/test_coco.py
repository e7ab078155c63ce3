"""COCO images: only those that the data names, each whole or not at all, from a bad server or a bad archive."""

import io
import json
import os
import signal
import socket
import time
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_utils.download.coco import NoNamesError, image_fault, needed_images
from mmrole.base.errors import UserError

QUICK = ("--retry_wait", "0.01", "--timeout", "2", "--rate", "0")


def name(number: int) -> str:
    return f"{number:012}.jpg"


def write_dialogues(root: Path, numbers: list[int]) -> None:
    file = root / "dialogues/in-distribution/comment/Iron_Man_COCO.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"image": f"COCO/train2017/{name(n)}"} for n in numbers]), encoding="utf-8")


@pytest.fixture
def site(server, photo):
    """A server with ten images, of which the first eight are needed."""
    server.files = {f"/train2017/{name(number)}": photo(number) for number in range(10)}
    return server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write_dialogues(root, [*range(8), 3])
    return root


def images(root: Path) -> dict[str, bytes]:
    """What lies in the image folder, by path below it."""
    folder = root / "images"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(site, numbers: range | list[int] = range(8)) -> dict[str, bytes]:
    return {f"COCO/train2017/{name(number)}": site.files[f"/train2017/{name(number)}"] for number in numbers}


# --- which images ---------------------------------------------------------------------------------------------------
def test_names_of_all_kinds_of_files(tmp_path: Path):
    write_dialogues(tmp_path, [5, 4])
    train = tmp_path / "data/train/train.json"
    train.parent.mkdir(parents=True)
    markup = "Picture 1: <img>images/COCO/train2017/000000000003.jpg</img>\nHi. COCO/train2017/12.jpg"
    train.write_text(json.dumps([{"value": markup}, {"image": "Friends/01.jpg"}]), encoding="utf-8")
    (tmp_path / "data/test").mkdir()
    (tmp_path / "data/test/escaped.json").write_text('[{"image": "COCO\\/train2017\\/000000000002.jpg"}]')
    (tmp_path / "data/test/empty.json").touch()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/x.json").write_text('"COCO/train2017/000000000009.jpg"')
    assert needed_images(tmp_path) == [name(number) for number in (2, 3, 4, 5)]
    assert needed_images(tmp_path, [train]) == [name(3)]
    assert needed_images(tmp_path, [tmp_path / "data/test", train]) == [name(2), name(3)]


def test_without_data_there_are_no_names(tmp_path: Path):
    with pytest.raises(NoNamesError, match=r"no JSON file .* in .*/dialogues, .*/data, .*/RM_data; fetch the data set"):
        needed_images(tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch):
    write_dialogues(tmp_path, [1])

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(UserError, match=r"cannot read .*Iron_Man_COCO.json: Permission denied"):
        needed_images(tmp_path)


def test_the_published_dialogues_need_10800_images(shared: Path):
    """10,839 in all; 39 occur only in test dialogues that are not there."""
    assert len(needed_images(shared / "mmrole", [shared / "mmrole/dialogues"])) == 10_800


# --- what a whole image is ------------------------------------------------------------------------------------------
def test_whole_images(photo):
    exif = Image.Exif()
    thumbnail = photo(1, size=(16, 16))
    assert image_fault(photo(2)) is None
    assert image_fault(photo(2, progressive=True)) is None
    assert image_fault(photo(2) + b"\0" * 50) is None  # anything may follow the end
    exif[0x927C] = thumbnail
    with_thumbnail = photo(3, exif=exif)
    assert with_thumbnail.count(b"\xff\xd9") == 2
    assert image_fault(with_thumbnail) is None
    for kind in ("PNG", "WEBP", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (20, 20)).save(file, kind)
        assert image_fault(file.getvalue()) is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": True}])
def test_every_cut_is_seen(photo, options):
    if "exif" in options:
        exif = Image.Exif()
        exif[0x927C] = photo(1, size=(16, 16))
        options = {"exif": exif}
    whole = photo(4, **options)
    for length in [*range(0, len(whole) - 100, 37), *range(len(whole) - 100, len(whole))]:
        assert image_fault(whole[:length]), length


def test_what_is_no_image():
    assert image_fault(b"<!DOCTYPE html><html>") == "not an image, but b'<!DOCTYPE html><html'"
    assert image_fault(b"") == "not an image, but b''"
    assert image_fault(b"%!PS-Adobe-3.0 EPSF-3.0\n").startswith("not an image")


# --- from the web ---------------------------------------------------------------------------------------------------
def test_fetches_what_is_needed_and_no_more(site, root, download):
    done = download("images", "--data_root", root, "--coco_url", site.url + "/train2017/", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    assert images(root) == expected(site)
    assert sorted(site.fetched()) == sorted(f"/train2017/{name(number)}" for number in range(8))
    assert "8 files fetched" in done.stdout
    assert "0 already there, 0 failed" in done.stdout
    site.log.clear()
    (root / "images/COCO/train2017" / name(2)).unlink()
    (root / "images/COCO/train2017" / name(5)).write_bytes(b"")
    done = download("images", "--data_root", root, "--coco_url", site.url + "/train2017", *QUICK)
    assert "images: 2 files fetched" in done.stdout
    assert "6 already there" in done.stdout
    assert sorted(site.fetched()) == [f"/train2017/{name(number)}" for number in (2, 5)]
    site.log.clear()
    done = download("images", "--data_root", root, "--coco_url", site.url + "/train2017", *QUICK)
    assert (done.returncode, site.log) == (0, [])
    assert done.stdout == "images: 0 files fetched, 8 already there, 0 failed\n"


FAULTS = {
    "404": "HTTP 404 Not Found",
    "403": "HTTP 403 Forbidden",
    "huge": "10,000,000,000 bytes announced, which is no single image",
    "500": "HTTP 500 Internal Server Error",
    "503": "HTTP 503 Service Unavailable",
    "429 0": "HTTP 429 Too Many Requests",
    "html": "not an image, but b'<!DOCTYPE html><html'",
    "stall": "no answer in time",
    "silence": "no answer in time",
    "truncate": "damaged image",
    "too short": "damaged image",
    "no length, close": "damaged image",
    "close": "bytes received",
    "too long": "bytes received",
    "hang up": "no connection: Remote end closed connection without response",
}
"""What the server does, and what is said of it. The first three are not tried again."""


@pytest.mark.parametrize("times", [1, 9])
def test_a_bad_server_never_leaves_a_bad_file(server, photo, tmp_path, download, times):
    numbers = dict(zip(FAULTS, range(1, 100), strict=False))
    everything = range(len(FAULTS) + 1)  # nothing is wrong with image 0
    server.files = {f"/{name(number)}": photo(number) for number in everything}
    server.faults = {f"/{name(number)}": [fault] * times for fault, number in numbers.items()}
    write_dialogues(tmp_path, list(everything))
    arguments = ("images", "--data_root", tmp_path, "--coco_url", server.url, "--retries", "1", *QUICK)
    done = download(*arguments)
    assert (done.returncode, done.stderr) == (1, "")
    failed = [number for number in numbers.values() if times > 2 or number <= 3]
    whole = {f"COCO/train2017/{name(n)}": server.files[f"/{name(n)}"] for n in everything}
    assert images(tmp_path) == {path: data for path, data in whole.items() if int(path[-16:-4]) not in failed}
    assert f"{len(failed)} failed\n" in done.stdout
    for fault, number in numbers.items():
        lines = [line for line in done.stdout.splitlines() if name(number) in line]
        assert len(lines) == (number in failed)
        assert all(FAULTS[fault] in line for line in lines)
        assert server.fetched().count(f"/{name(number)}") == (1 if number <= 3 else 2)
    server.faults.clear()
    server.log.clear()
    assert download(*arguments).returncode == 0
    assert images(tmp_path) == whole
    assert sorted(server.fetched()) == [f"/{name(number)}" for number in sorted(failed)]


def test_a_killed_download_fetches_no_finished_file_again(site, tmp_path, photo, start, download):
    root, count = tmp_path / "root", 120
    site.files = {f"/train2017/{name(number)}": photo(number) for number in range(count)}
    write_dialogues(root, list(range(count)))
    site.delay = 0.05
    arguments = ("images", "--data_root", root, "--coco_url", site.url + "/train2017", "--workers", "4", *QUICK)
    finished = set()
    for wanted in (20, 50):
        process = start(*arguments)
        folder = root / "images/COCO/train2017"
        while len(list(folder.glob("[0-9]*.jpg"))) < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = {path.name for path in folder.glob("[0-9]*.jpg")}
        assert all((folder / file).read_bytes() == site.files[f"/train2017/{file}"] for file in there)
        assert not finished & {path.rsplit("/", 1)[1] for path in site.fetched()}
        finished |= there
        site.log.clear()
    assert len(finished) < count
    site.delay = 0
    assert download(*arguments).returncode == 0
    assert not finished & {path.rsplit("/", 1)[1] for path in site.fetched()}
    assert images(root) == expected(site, range(count))  # nothing else is left: no partial files, no lock


def test_interrupted_it_says_what_it_has(site, root, start):
    site.faults["/train2017/" + name(0)] = ["silence"] * 9
    process = start(
        "images", "--data_root", root, "--coco_url", site.url + "/train2017", "--retry_wait", "600", *QUICK[2:]
    )
    while len(list(root.glob("images/COCO/train2017/[0-9]*.jpg"))) < 7:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert "images: 7 files fetched" in stdout


def test_damaged_files_are_found_on_request(site, root, download):
    arguments = ("images", "--data_root", root, "--coco_url", site.url + "/train2017", *QUICK)
    download(*arguments)
    damaged = root / "images/COCO/train2017" / name(1)
    damaged.write_bytes(damaged.read_bytes()[:-300])
    assert "0 files fetched, 8 already there" in download(*arguments).stdout
    assert "1 files fetched" in download(*arguments, "--verify").stdout
    assert images(root) == expected(site)


def test_without_network_one_line_at_once(site, root, download):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        done = download("images", "--data_root", root, "--coco_url", url, "--retry_wait", "100")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot reach {url}: no connection: Connection refused; check the network")
    assert done.stderr.count("\n") == 1


def test_a_wrong_address_is_given_up(server, tmp_path, download):
    write_dialogues(tmp_path, list(range(300)))
    done = download("images", "--data_root", tmp_path, "--coco_url", server.url, *QUICK)
    assert done.returncode == 1
    assert "  stopped: 50 files in a row failed, the last with: HTTP 404 Not Found\n" in done.stdout
    assert f"HTTP 404 Not Found: {name(0)}" in done.stdout
    assert len(server.fetched()) < 100


def test_a_full_disk_is_one_line(site, tmp_path_factory, on_small_disk):
    """Every image is larger than the room there is."""
    for path in site.files:
        site.files[path] += b"\0" * 100_000
    elsewhere = tmp_path_factory.mktemp("data")  # not on the small disk
    write_dialogues(elsewhere, [*range(8)])
    code = f"""
from mmrole.base.errors import run
from data_utils.download.__main__ import main
run(lambda: main(["images", "--data_root", str(folder), "--coco_url", "{site.url}/train2017",
    "--names_from", "{elsewhere}/dialogues", "--rate", "0"]))
"""
    done = on_small_disk(code)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert "No space left on device" in done.stderr or "File too large" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_at_once_are_refused(site, root, start, download):
    site.faults["/train2017/" + name(0)] = ["silence"]
    arguments = ("images", "--data_root", root, "--coco_url", site.url + "/train2017", "--rate", "0")
    first = start(*arguments, "--timeout", "600")
    while f"/train2017/{name(0)}" not in site.fetched():
        time.sleep(0.01)
    second = download(*arguments)
    assert second.returncode == 2
    assert second.stderr.startswith("error: another download is writing into ")
    first.kill()
    first.wait()
    assert download(*arguments).returncode == 0
    assert images(root) == expected(site)


def test_a_linked_folder_of_images_is_used(site, root, tmp_path, download, photo):
    """Whoever has COCO already links it into place."""
    (tmp_path / "coco").mkdir()
    for number in range(8):
        (tmp_path / "coco" / name(number)).write_bytes(photo(number))
    (root / "images/COCO").mkdir(parents=True)
    (root / "images/COCO/train2017").symlink_to(tmp_path / "coco")
    done = download("images", "--data_root", root, "--coco_url", site.url)
    assert (done.returncode, site.log) == (0, [])
    assert "8 already there" in done.stdout


# --- from an archive ------------------------------------------------------------------------------------------------
@pytest.fixture
def archive(tmp_path: Path, photo) -> Path:
    """COCO's archive with more than is needed, without image 7, and with members that want to get out."""
    path = tmp_path / "train2017.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train2017/", b"")
        for number in [0, 1, 2, 3, 4, 20, 21]:
            file.writestr(f"train2017/{name(number)}", photo(number))
        file.writestr(f"/absolute/train2017/{name(5)}", photo(5))
        file.writestr(f"../../train2017/{name(6)}", photo(6))
        file.writestr("../../../escaped.jpg", photo(30))
        file.writestr(f"val2017/{name(7)}", photo(31))
    return path


def test_images_of_an_archive(site, root, archive, download):
    done = download("images", "--data_root", root, "--coco_zip", archive)
    assert (done.returncode, done.stderr, site.log) == (1, "", [])
    assert images(root) == expected(site, range(7))
    assert f"  not in the archive: {name(7)}\n" in done.stdout
    assert "7 files fetched" in done.stdout
    everything = {path.name for path in root.parent.rglob("*") if path.is_file()}
    assert everything == {*map(name, range(7)), "Iron_Man_COCO.json", "train2017.zip"}


def test_damage_inside_an_archive(site, root, archive, download, photo):
    data = bytearray(archive.read_bytes())
    start = data.find(photo(2)) + 200
    data[start : start + 50] = bytes(50)
    archive.write_bytes(data)
    with zipfile.ZipFile(archive, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names; the later ones count
        # sound for the archive, but no image, and half of one
        file.writestr(f"train2017/{name(3)}", b"<html>")
        file.writestr(f"train2017/{name(4)}", photo(4)[:-50])
    done = download("images", "--data_root", root, "--coco_zip", archive)
    assert (done.returncode, done.stderr) == (1, "")
    assert images(root) == expected(site, [0, 1, 5, 6])
    assert f"damaged in the archive (Bad CRC-32 for file 'train2017/{name(2)}'): {name(2)}" in done.stdout
    assert f"not an image, but b'<html>' in the archive: {name(3)}" in done.stdout
    assert f"in the archive: {name(4)}" in done.stdout


@pytest.mark.parametrize("damage", ["cut", "other", "absent", "folder"])
def test_archives_that_cannot_be_opened(root, archive, download, damage):
    if damage == "cut":
        os.truncate(archive, archive.stat().st_size // 2)
    elif damage == "other":
        archive.write_bytes(b"Rar!" * 100)
    else:
        archive.unlink()
    if damage == "folder":
        archive.mkdir()
    for options in ([], ["--dry_run"]):
        done = download("images", "--data_root", root, "--coco_zip", archive, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert str(archive) in done.stderr


# --- dry run --------------------------------------------------------------------------------------------------------
def test_a_dry_run_estimates(site, root, download):
    url = site.url + "/train2017"
    arguments = ("images", "--data_root", root, "--coco_url", url, "--rate", "0", "--dry_run")
    done = download(*arguments)
    assert (done.returncode, done.stderr, site.fetched(), images(root)) == (0, "", [], {})
    total = sum(len(content) for content in expected(site).values())
    assert f"to fetch from {url}: 8 files, about {total / 1000:.1f} kB, an estimate" in done.stdout
    assert "8 COCO images are named, 0 of them in" in done.stdout
    site.files.clear()
    assert "of the archive's images" in download(*arguments).stdout


def test_a_dry_run_of_an_archive(site, root, archive, download):
    done = download("images", "--data_root", root, "--coco_zip", archive, "--dry_run")
    total = sum(len(content) for content in expected(site, range(7)).values())
    assert (done.returncode, images(root)) == (0, {})
    assert f"to take from {archive}: 7 files, {total / 1000:.1f} kB" in done.stdout
    assert f"not in it: 1 files: {name(7)}" in done.stdout
