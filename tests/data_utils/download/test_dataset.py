"""The data set from a hub, as files or in archives of any kind: into the layout, never over somebody's work."""

import io
import json
import random
import signal
import stat
import tarfile
import time
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from data_utils.download import archives
from data_utils.download.web import Failure
from mmrole.base.errors import UserError

DATA = "YanqiDai/MMRole_dataset"
FIRST, SECOND = 40 * "1", 40 * "2"
LAYOUT = {
    "data/train/train_85k.json": b"[1]",
    "data/test/in-distribution/comment_test.json": b"[2]",
    "dialogues/in-distribution/comment/Albus_Dumbledore_COCO.json": b"[3]",
    'dialogues/in-distribution/comment/Elizabeth_"Lizzy"_Thompson_COCO.json': b"[4]",
    "images/西游记/01.jpg": b"picture one",
    "images/Friends/01.jpg": b"picture two",
    "profiles/in-distribution/roles.json": b"{}",
    "RM_data/train/RM-train_23k.json": b"[5]" * 1000,
}


def zipped(files: dict[str, bytes], **options: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def content(root: Path) -> dict[str, bytes]:
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    files.pop("data/download.json", None)
    return files


def part_of_layout(folder: str) -> dict[str, bytes]:
    return {name: data for name, data in LAYOUT.items() if name.startswith(folder)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def fetch(root, download, hub_env):
    """Runs the command for the data set."""

    def fetch(*arguments: str, **environment: str):
        options = ("--retry_wait", "0.01", "--retries", "1")
        return download("data", "--data_root", root, *options, *arguments, **hub_env | environment)

    return fetch


def as_files(prefix: str) -> dict[str, bytes]:
    return {prefix + name: data for name, data in LAYOUT.items()}


def as_archives() -> dict[str, bytes]:
    """Every folder of the layout in another kind of archive."""
    short = {name.removeprefix("images/"): data for name, data in part_of_layout("images/").items()}
    return {
        "images.zip": zipped(short | {"__MACOSX/Friends/._01.jpg": b"junk", "Friends/.DS_Store": b"junk"}),
        "dialogues.tar.gz": tarred(part_of_layout("dialogues/"), "w:gz"),
        "profiles.tar": tarred({f"./{name}": data for name, data in part_of_layout("profiles/").items()}),
        "data.zip": zipped(part_of_layout("data/"), compression=zipfile.ZIP_DEFLATED),
        "RM_data.tar.xz": tarred({f"MMRole/{n}": data for n, data in part_of_layout("RM_data/").items()}, "w:xz"),
    }


@pytest.mark.parametrize(
    "files", [as_files(""), as_files("MMRole_dataset/"), as_archives(), {"all.zip": zipped(as_files("MMRole/"))}]
)
def test_into_the_layout(hub, root, fetch, files):
    hub.put(DATA, "dataset", {"README.md": b"# data", ".gitattributes": b"x", "loader.py": b"x"} | files, FIRST)
    done = fetch()
    assert (done.returncode, done.stderr) == (0, "")
    assert content(root) == LAYOUT
    assert f"data: {DATA} at main, commit {FIRST}, from {hub.url}\n" in done.stdout
    assert "left aside: README.md, .gitattributes\n" in done.stdout
    assert json.loads((root / "data/download.json").read_text())["commit"] == FIRST
    hub.log.clear()
    assert f"0 files fetched, {len(files)} already there" in fetch("--verify").stdout
    assert len(hub.log) == 1
    assert f"0 files fetched, {len(files)} already there" in fetch(HF_HUB_OFFLINE="1").stdout


def test_a_lost_member_brings_its_archive_again(hub, root, fetch):
    hub.put(DATA, "dataset", as_archives(), FIRST)
    fetch()
    (root / "images/Friends/01.jpg").unlink()
    hub.log.clear()
    assert "1 files fetched" in fetch().stdout
    assert len(hub.log) == 2
    assert content(root) == LAYOUT


def test_a_repository_root_keeps_its_files(hub, root, fetch):
    """The data set has a README too, but the root is that of the code."""
    root.mkdir()
    (root / "README.md").write_bytes(b"# code")
    hub.put(DATA, "dataset", LAYOUT | {"README.md": b"# data"}, FIRST)
    assert fetch().returncode == 0
    assert (root / "README.md").read_bytes() == b"# code"


@pytest.mark.parametrize("files", [LAYOUT, as_archives()])
def test_changed_files_are_kept(hub, root, fetch, files):
    mine = root / "profiles/in-distribution/roles.json"
    hub.put(DATA, "dataset", files, FIRST)
    fetch()
    mine.write_bytes(b'{"series": ["my own character"]}')
    kept = "kept, though not as published (--overwrite replaces): profiles/in-distribution/roles.json\n"
    newer = LAYOUT | {"profiles/in-distribution/roles.json": b"{1}", "data/train/train_85k.json": b"[6]"}
    for commit, published in ((FIRST, files), (SECOND, newer if files is LAYOUT else {"new.zip": zipped(newer)})):
        hub.put(DATA, "dataset", published, commit)
        for _ in range(2):
            done = fetch()
            assert (done.returncode, done.stderr) == (1, "")
            assert kept in done.stdout
            assert mine.read_bytes() == b'{"series": ["my own character"]}'
    assert kept in fetch("--dry_run").stdout
    assert (root / "data/train/train_85k.json").read_bytes() == b"[6]"
    assert fetch("--overwrite").returncode == 0
    assert mine.read_bytes() == b"{1}"
    assert fetch().returncode == 0


def test_killed_while_unpacking_nothing_is_fetched_again(hub, root, hub_env, start, fetch):
    files = {f"images/Friends/{number}.jpg": random.Random(number).randbytes(100) for number in range(300)}
    hub.put(DATA, "dataset", {"images.zip": zipped(files), "data/train/x.json": b"[]"}, FIRST)
    process = start("data", "--data_root", root, **hub_env)
    while not (root / "images/Friends/20.jpg").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((root / "images/Friends").iterdir())) < 300
    hub.log.clear()
    assert fetch().returncode == 0
    assert len(hub.log) <= 2  # the listing, and the small file if the kill was earlier than it
    assert not any("images.zip" in path for path in hub.fetched())
    assert content(root) == files | {"data/train/x.json": b"[]"}


def evil_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("../../evil.jpg", "/evil.jpg", "images/../../evil.jpg", "images/a\\evil.jpg"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        for name, kind, target in (
            ("images/link", tarfile.SYMTYPE, "/tmp"),
            ("images/hard.jpg", tarfile.LNKTYPE, "../../evil.jpg"),
            ("images/pipe", tarfile.FIFOTYPE, ""),
            ("images/device", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("images/link/evil.jpg")  # would go through the link
        info.size = 4
        archive.addfile(info, io.BytesIO(b"fine"))
    return file.getvalue()


def evil_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("../../evil.jpg", "/evil.jpg", "images/../../evil.jpg"):
            archive.writestr(name, b"evil")
        link = zipfile.ZipInfo("images/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/tmp")
        archive.writestr("images/link/evil.jpg", b"fine")
    return file.getvalue()


@pytest.mark.parametrize(("name", "archive"), [("images.zip", evil_zip()), ("images.tar", evil_tar())])
def test_nothing_gets_out_of_the_layout(hub, root, fetch, name, archive):
    hub.put(DATA, "dataset", {name: archive}, FIRST)
    done = fetch()
    assert (done.returncode, done.stderr) == (0, "")
    assert content(root) == {"images/link/evil.jpg": b"fine"}
    assert not (root / "images/link").is_symlink()
    assert [path.name for path in root.parent.iterdir()] == ["root"] or not list(root.parent.glob("evil*"))
    assert f"left aside of {name}: ../../evil.jpg, /evil.jpg, images/../../evil.jpg" in done.stdout
    assert "images/link" in done.stdout


def encrypted() -> bytes:
    data = bytearray(zipped({"images/x.jpg": b"secret"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + offset] |= 1
    return bytes(data)


def damaged(archive: bytes) -> bytes:
    return archive[:60] + bytes(40) + archive[100:]


@pytest.mark.parametrize(
    ("name", "archive", "said"),
    [
        ("images.zip", b"no zip", "the archive is damaged or cannot be read"),
        ("images.zip", damaged(zipped({"images/x.jpg": bytes(range(200))})), "the archive is damaged"),
        ("images.zip", encrypted(), "the archive is encrypted"),
        ("images.tar.gz", b"no tar", "the archive is damaged"),
        ("images.tar.gz", tarred({"images/x.jpg": random.Random(0).randbytes(9000)}, "w:gz")[:5000], "is damaged"),
        ("images.tar", tarred({"images/x.jpg": bytes(range(200))})[:600], "is damaged"),
        ("images.tar.bz2", damaged(tarred({"images/x.jpg": bytes(range(200))}, "w:bz2")), "is damaged"),
        ("images.tar.xz", damaged(tarred({"images/x.jpg": bytes(range(200))}, "w:xz")), "is damaged"),
        ("other.zip", zipped({"notes.txt": b"x"}), "nothing in the archive belongs into data, dialogues"),
    ],
)
def test_bad_archives_are_named(hub, root, fetch, name, archive, said):
    hub.put(DATA, "dataset", {name: archive, "data/train/x.json": b"[]"}, FIRST)
    done = fetch()
    assert (done.returncode, done.stderr) == (1, "")
    [line] = [line for line in done.stdout.splitlines() if line.endswith(f": {name}")]
    assert said in line
    assert not (root / "images/x.jpg").exists()
    assert "1 files fetched" in done.stdout
    assert json.loads((root / "data/download.json").read_text())["complete"] is False


def test_a_data_set_without_the_layout(hub, fetch):
    hub.put(DATA, "dataset", {"README.md": b"x", "train.parquet": b"x"}, FIRST)
    done = fetch()
    assert (done.returncode, done.stdout) == (2, "")
    assert "has nothing that fits the layout, but README.md, train.parquet" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_chinese_names_without_a_flag(tmp_path: Path, encoding: str):
    """As zip programs of macOS and of a Chinese Windows write them."""
    name = "images/西游记/孙悟空.jpg"
    placeholder = "images/" + "x" * (len(name.encode(encoding)) - 7)
    data = zipped({placeholder: b"x"}).replace(placeholder.encode(), name.encode(encoding))
    (tmp_path / "a.zip").write_bytes(data)
    [member] = archives.members(tmp_path / "a.zip", "a.zip")
    assert member.path == PurePosixPath(name)


def test_a_member_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(zipped({"x": b"x"}))
    for member in archives.members(tmp_path / "a.zip", "a.zip"):
        with pytest.raises(UserError, match=r"cannot write .*nowhere.*: No such file or directory; make room"):
            archives.extract(member, tmp_path / "nowhere/x")
    with pytest.raises(Failure, match="No such file"):
        list(archives.members(tmp_path / "absent.zip", "absent.zip"))
