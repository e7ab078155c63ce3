"""A hub that means harm: its checksums, names, sizes and archives write nothing outside, and never fill the disk."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from data_utils.download import archives, listing, room, transfer
from data_utils.download import hub as client
from data_utils.download.hub import REPOSITORIES
from data_utils.download.web import Failure, Patience, get, retry_after, size_of
from mmrole.base.errors import UserError

AGENT, DATA = "YanqiDai/MMRole-Agent", "YanqiDai/MMRole_dataset"
FIRST = 40 * "1"
QUICK = ("--retry_wait", "0.01", "--timeout", "3", "--retries", "0")
SHA1, SHA256 = 40 * "a", 64 * "b"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a/b/c/d/root"


@pytest.fixture
def fetch(root, download, hub_env):
    def fetch(target: str = "agent", *arguments: str, **environment: str):
        return download(target, "--data_root", root, *QUICK, *arguments, **hub_env | environment)

    return fetch


def everything(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and "hf_home" not in path.parts}


def refused(done, *texts: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr


def sibling(**changes: object) -> dict:
    return {"rfilename": "config.json", "size": 4, "blobId": SHA1} | changes


CHECKSUMS = [
    *("../../x", "../../../../../pwned", "/tmp/x", "a" * 39, "A" * 40, "g" * 40, SHA1 + "\n", "٣" * 40, "", "a" * 9000),
    *(None, 5, True, [SHA1], {"sha": SHA1}),
]


@pytest.mark.parametrize(
    "listed",
    [
        *(sibling(blobId=oid) for oid in CHECKSUMS),
        *(sibling(lfs={"sha256": oid, "size": 4, "pointerSize": 9}) for oid in [*CHECKSUMS, SHA1]),
        *(sibling(size=size) for size in (-1, 4.0, True, "4", None, 1e300, 10**400, [4])),
        sibling(blobId=SHA256),
        sibling(lfs={}, blobId=SHA1),
    ],
)
def test_what_is_no_checksum_or_size_is_refused(listed):
    with pytest.raises(UserError, match=r"tells no size and checksum of config\.json, so nothing could be verified"):
        listing._file(REPOSITORIES["agent"], listed)


def test_a_checksum_becomes_no_file_name(hub, root, fetch, tmp_path):
    hub.put(AGENT, "model", {"config.json": b"evil"}, FIRST)
    victim = root.parent / "victim.part"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"mine")
    for oid in ("/../../../../../victim", "../../../../victim"):
        for info in hub.infos.values():
            info["siblings"][0]["blobId"] = oid
        refused(fetch(), "tells no size and checksum of config.json")
    assert everything(tmp_path) == {"victim.part"}
    assert victim.read_bytes() == b"mine"


LISTINGS = [
    *("[]", "null", "5", '"x"', "{}", "not json", "[" * 100_000, '{"sha": 1e999}', "\xff"),
    *(json.dumps({"sha": sha, "siblings": [sibling()]}) for sha in ("../../x", "main", 5, None, "1" * 39)),
    *(json.dumps({"sha": FIRST, "siblings": siblings}) for siblings in (None, {}, "x", 5, [5], ["x"], [None], [{}])),
    *(json.dumps({"sha": FIRST, "siblings": [sibling(rfilename=name)]}) for name in (5, None, ["x"], {})),
    json.dumps({"sha": FIRST, "siblings": [sibling(), sibling()]}),
]


def test_a_listing_of_wrong_types_is_refused(hub, monkeypatch):
    monkeypatch.setattr(client, "endpoint", lambda: hub.url)
    path = f"/api/models/{AGENT}/revision/main"
    for text in LISTINGS:
        hub.files[path] = text.encode("latin-1")
        with pytest.raises(UserError, match="gives no usable listing of YanqiDai/MMRole-Agent: ") as caught:
            listing.list_files(REPOSITORIES["agent"], Patience())
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


def test_a_listing_without_an_end(hub, monkeypatch):
    monkeypatch.setattr(client, "endpoint", lambda: hub.url)
    monkeypatch.setattr(listing, "LARGEST", 10_000)
    path = f"/api/models/{AGENT}/revision/main"
    hub.files[path] = b"[" + b"1," * 10_000
    hub.faults[path] = ["no length", "trickle"]
    with pytest.raises(UserError, match="more than 10,000 bytes"):
        listing.list_files(REPOSITORIES["agent"], Patience())
    with pytest.raises(Failure, match="too slow"):
        listing.list_files(REPOSITORIES["agent"], Patience(timeout=0.1))


def test_a_redirection_of_the_listing_takes_no_token_along(hub, server, fetch):
    path = f"/api/models/{AGENT}/revision/main"
    hub.files[path] = server.files[path] = b"{}"
    for place in (
        server.url.replace("127.0.0.1", "localhost") + path,
        "file:///etc/passwd",
        hub.url + path,
        "http://[",
    ):
        hub.faults[path] = [f"redirect {place}"] * 30
        done = fetch(HF_TOKEN="hf_secret")
        refused(done)
        assert "root:" not in done.stderr
    assert server.log
    assert not any("authorization" in map(str.lower, request.headers) for request in server.log)


def test_a_file_without_an_end_does_not_fill_the_disk(hub, root, fetch, tmp_path):
    hub.put(AGENT, "model", {"model.bin": b"x" * 2000, "config.json": b"{}"}, FIRST)
    path = f"/{AGENT}/resolve/{FIRST}/model.bin"
    hub.files[path] = bytes(50_000_000)
    hub.faults[path] = ["no length"]
    done = fetch()
    assert done.returncode == 1
    assert "more than the 2,000 bytes that the hub lists: model.bin" in done.stdout
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 100_000


MODEL = {"model.bin": b"x" * 2000, "config.json": b"{}"}
MODEL_PATH = f"/{AGENT}/resolve/{FIRST}/model.bin"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("endless 404", "HTTP 404"),
        ("endless 500", "HTTP 500"),
        ("endless 200", "more than the 2,000 bytes"),
        ("br", "compresses what must not be compressed (br)"),
        ("other part", "HTTP 206"),
        ("204", "HTTP 204"),
        ("truncate", "1,000 of 2,000 bytes received"),
    ],
)
def test_answers_that_are_no_file(hub, root, fetch, fault, words):
    hub.put(AGENT, "model", MODEL, FIRST)
    hub.faults[MODEL_PATH] = [fault]
    done = fetch()
    assert done.returncode == 1, done.stderr
    assert words in done.stdout
    assert done.stderr == ""
    assert fetch().returncode == 0
    assert (root / "model_weights/MMRole-Agent/model.bin").read_bytes() == MODEL["model.bin"]


def test_what_comes_compressed_is_unpacked_no_further_than_it_may_be_large(hub, root, monkeypatch):
    monkeypatch.setattr(client, "endpoint", lambda: hub.url)
    hub.put(AGENT, "model", MODEL, FIRST)
    hub.faults[MODEL_PATH] = ["gzip", "gzip"]
    snapshot = listing.list_files(REPOSITORIES["agent"], Patience())
    file = next(file for file in snapshot.files if file.size == 2000)
    transfer.fetch(snapshot, file, root / "x.part", lambda count: None)
    assert (root / "x.part").read_bytes() == MODEL["model.bin"]
    hub.files[MODEL_PATH] = bytes(200_000_000)
    tracemalloc.start()
    with pytest.raises(Failure, match="more than the 2,000 bytes"):
        transfer.fetch(snapshot, file, root / "y.part", lambda count: None)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


NAMES = ["download.json", "Download.JSON", "../x.bin", "x/../../y.bin", "a\0b", "~/.bashrc", "/".join(["x" * 200] * 6)]


def test_names_that_have_no_place_are_left_aside(hub, root, fetch, tmp_path):
    hub.put(AGENT, "model", dict.fromkeys(NAMES, b"evil") | {"config.json": b"{}", "x.part": b"mine"}, FIRST)
    done = fetch()
    assert (done.returncode, done.stderr) == (0, "")
    assert everything(tmp_path) == {"config.json", "x.part", "download.json"}
    assert json.loads((root / "model_weights/MMRole-Agent/download.json").read_text())["commit"] == FIRST
    assert "left aside: download.json, Download.JSON, ../x.bin" in done.stdout


def test_two_files_of_one_place(hub, root, fetch):
    hub.put(DATA, "dataset", {"old/images/a.jpg": b"old", "images/a.jpg": b"new"}, FIRST)
    for _ in range(2):
        done = fetch("data")
        assert done.returncode == 0
        assert "left aside: old/images/a.jpg\n" in done.stdout
        assert (root / "images/a.jpg").read_bytes() == b"new"
    assert "0 files fetched" in done.stdout


def test_a_file_that_comes_meanwhile_is_kept(hub, root, start, hub_env):
    hub.put(AGENT, "model", {"config.json": b"{}"}, FIRST)
    path = f"/{AGENT}/resolve/{FIRST}/config.json"
    hub.delay = 0.3
    process = start("agent", "--data_root", root, *QUICK, **hub_env)
    while path not in hub.fetched():
        assert process.poll() is None
    mine = root / "model_weights/MMRole-Agent/config.json"
    mine.write_bytes(b"mine")
    stdout, _ = process.communicate()
    assert process.returncode == 1
    assert "something else has come into its place; --overwrite replaces it: config.json" in stdout
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "change",
    [
        {"oid": "../../../x"},
        {"oid": 5},
        {"size": "4"},
        {"size": True},
        {"source": "../x"},
        {"source": 5},
        {"mtime_ns": None},
        {"more": 1},
    ],
)
def test_a_record_that_nobody_wrote_is_refused(hub, root, fetch, change):
    hub.put(AGENT, "model", {"config.json": b"{}"}, FIRST)
    file = root / "model_weights/MMRole-Agent/download.json"
    file.parent.mkdir(parents=True)
    known = {"source": "config.json", "oid": SHA1, "size": 4, "mtime_ns": 5} | change
    about = {"repository": AGENT, "revision": "main", "endpoint": "", "commit": FIRST, "complete": True}
    file.write_text(json.dumps({**about, "archives": {}, "files": {"config.json": known}}))
    refused(fetch(HF_HUB_OFFLINE="1"), "is not the record of a download")


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "http://127.0.0.1:999999/x", "http://é" + "x" * 99]
)
def test_redirections_of_a_web_server(server, place):
    server.files["/x"] = b"x"
    server.faults["/x"] = [f"redirect {place}"] * 2
    with pytest.raises(Failure):
        get(f"{server.url}/x", 2)


def test_headers_with_endless_numbers(server):
    server.files["/x"] = b"x"
    assert size_of(f"{server.url}/x", 2) == 1
    for value in ("9" * 5000, "-5", "nan", "Mon, 01 Jan 99999999999 00:00:00 GMT", "\x00", "٣"):
        retry_after({"Retry-After": value})


# --- archives -------------------------------------------------------------------------------------------------------
def big_zip(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/Friends/01.jpg", b"sound")
        with archive.open("images/Friends/02.jpg", "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return file.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_tar(size: int) -> bytes:
    """One member of the old GNU form, with a single byte of data at its end."""
    block = bytearray(header("images/Friends/02.jpg", 512, tarfile.GNUTYPE_SPARSE))
    block[386:398], block[398:410] = b"%011o\0" % (size - 512), b"%011o\0" % 512
    block[482] = 0
    block[483:495] = b"%011o\0" % size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512) + bytes(1024)


@pytest.mark.parametrize(
    ("name", "archive", "holds"),
    [
        ("images.zip", big_zip(16 << 20), "images.zip holds 2 files, 16.8 MB; "),
        ("images.tar", sparse_tar(1 << 31), "images.tar holds 1 files, 2.1 GB; "),
    ],
    ids=["zip", "sparse"],
)
@pytest.mark.parametrize("on_small_disk", ["full disk"], indirect=True)
def test_an_archive_that_does_not_fit_is_refused_before_it_is_unpacked(
    hub, root, hub_env, on_small_disk, name, archive, holds
):
    hub.put(DATA, "dataset", {name: archive, "data/train/x.json": b"[]"}, FIRST)
    for _ in range(2):
        done = on_small_disk(unpacking(hub.url))
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {holds}unpacked it takes "), done.stderr
        assert "are free; make room\n" in done.stderr
        assert done.stderr.count("\n") == 1
        assert "left: []" in done.stdout


def test_a_half_written_member_is_removed_and_the_first_error_told(hub, on_small_disk):
    hub.put(DATA, "dataset", {"images.zip": big_zip(16 << 20)}, FIRST)
    taken = "room._free = lambda folder: (folder, 1 << 40)  # another program takes the room meanwhile"
    done = on_small_disk(unpacking(hub.url, taken))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert ".member.part: " in done.stderr
    assert "download.json" not in done.stderr
    assert "left: []" in done.stdout


def unpacking(url: str, first: str = "") -> str:
    return f"""
import os
os.environ["HF_ENDPOINT"] = "{url}"
from mmrole.base.errors import run
from data_utils.download import room
from data_utils.download.__main__ import main
{first}
try:
    run(lambda: main(["data", "--data_root", str(folder), "--retries", "0"]))
finally:
    print("left:", [str(path) for path in folder.rglob("*.member.part")])
"""


def test_what_an_archive_holds_is_said(hub, root, fetch):
    hub.put(DATA, "dataset", {"images.zip": big_zip(1 << 20)}, FIRST)
    done = fetch("data")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nimages.zip holds 2 files, 1.0 MB; " in done.stdout
    assert "are free in " in done.stdout


def test_room_counts_what_is_there(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(bytes(100_000))
    sizes = {Path("images/a.jpg"): 100_000, Path("images/b.jpg"): 0, Path("data/train/c.json"): 5000}
    assert room._growth_by_disk(tmp_path, sizes).popitem()[1] == 100_000  # which is written once more
    assert room._growth_by_disk(tmp_path, {Path("images/b.jpg"): 0}).popitem()[1] == 4096
    with pytest.raises(UserError, match=r"x\.zip holds 1 files, .* unpacked it takes .*; make room"):
        room.describe_room(tmp_path, {Path("images/b.jpg"): 1 << 62}, "x.zip")


def negative_size() -> bytes:
    block = bytearray(header("images/a.jpg", 0))
    block[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) * 3


@pytest.mark.parametrize(
    "data",
    [
        negative_size(),
        header("x", 1 << 40, tarfile.XHDTYPE) + bytes(2048),
        header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME) + bytes(2048),
        gzip.compress(header("x", 8 << 30, tarfile.XHDTYPE) + bytes(2048)),
        header("images/a.jpg", 1 << 40) + bytes(512),
    ],
    ids=["negative size", "pax", "long name", "compressed pax", "cut short"],
)
def test_headers_that_lie(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    members = archives.members(tmp_path / "x.tar", "x.tar")
    with pytest.raises(Failure, match="damaged"):
        [archives.extract(member, tmp_path / "out") for member in members]


def test_a_member_that_has_more_than_is_told(tmp_path):
    member = archives.Member("x", None, io.BytesIO(bytes(100)), 99)
    with pytest.raises(Failure, match="tells 99 bytes of 'x', which has more"):
        archives.extract(member, tmp_path / "out")


def test_the_last_of_several_members_of_one_place_counts(hub, root, fetch):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("images/a.jpg", b"one"), ("MMRole/images/a.jpg", b"two"), ("images/a.jpg", b"three")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    hub.put(DATA, "dataset", {"images.tar": file.getvalue()}, FIRST)
    for _ in range(2):
        assert fetch("data").returncode == 0
        assert (root / "images/a.jpg").read_bytes() == b"three"


def test_a_file_that_is_a_folder_too(hub, root, fetch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images/a", b"1")
        archive.writestr("images/a/b.jpg", b"2")
    hub.put(DATA, "dataset", {"images.zip": file.getvalue(), "data/train/x.json": b"[]"}, FIRST)
    done = fetch("data")
    assert (done.returncode, done.stderr) == (1, "")
    assert "these are files and folders at once: images/a: images.zip" in done.stdout
    assert not (root / "images").exists()
