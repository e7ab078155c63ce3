"""Weights from a hub, with the real client of huggingface_hub: resumed, verified, recorded; nothing is overwritten."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

AGENT = "YanqiDai/MMRole-Agent"
FIRST, SECOND = 40 * "1", 40 * "2"
QUICK = ("--retry_wait", "0.01", "--timeout", "3")
HALF = 3 << 20
SHARD = random.Random(0).randbytes(2 * HALF)

WEIGHTS = {
    ".gitattributes": b"*.bin filter=lfs\n",
    "README.md": b"# Agent\n",
    "config.json": b'{"model_type": "qwen"}\n',
    "modeling_qwen.py": b"raise SystemExit('never run')\n",
    "assets/wordmap.json": b"{}",
    "empty.txt": b"",
    "pytorch_model-00001-of-00002.bin": random.Random(1).randbytes(5000),
    "pytorch_model-00002-of-00002.bin": random.Random(2).randbytes(3000),
}
FETCHED = [name for name in WEIGHTS if not name.startswith(".") and not name.endswith(".py")]


def resolve(name: str, commit: str = FIRST, repository: str = AGENT) -> str:
    return f"/{repository}/resolve/{commit}/{name}"


def content(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by path below it, without the record."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop("download.json", None)
    return files


def record(folder: Path) -> dict:
    return json.loads((folder / "download.json").read_text(encoding="utf-8"))


@pytest.fixture
def agent(hub):
    """A hub that has the agent."""
    hub.put(AGENT, "model", WEIGHTS, FIRST)
    return hub


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "model_weights/MMRole-Agent"


@pytest.fixture
def fetch(root, download, hub_env):
    """Runs the command for the agent."""

    def fetch(*arguments: str, **environment: str):
        return download("agent", "--data_root", root, *QUICK, *arguments, **hub_env | environment)

    return fetch


# --- what is fetched ------------------------------------------------------------------------------------------------
def test_weights_without_code(agent, folder, fetch):
    done = fetch()
    assert (done.returncode, done.stderr) == (0, "")
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}
    assert f"agent: {AGENT} at main, commit {FIRST}, from {agent.url}\n" in done.stdout
    assert "code, which is never run here, is not fetched: modeling_qwen.py\n" in done.stdout
    assert "left aside: .gitattributes\n" in done.stdout
    assert "agent: 6 files fetched (8.0 kB), 0 already there, 0 failed" in done.stdout
    about = record(folder)
    assert (about["repository"], about["revision"], about["commit"]) == (AGENT, "main", FIRST)
    assert about["complete"] is True
    assert sorted(about["files"]) == sorted(FETCHED)
    assert all(resolve(name) not in agent.fetched() for name in WEIGHTS if name not in FETCHED)


def test_again_nothing_is_fetched(agent, folder, fetch):
    fetch()
    written = (folder / "download.json").read_bytes()
    agent.log.clear()
    done = fetch()
    assert "agent: 0 files fetched, 6 already there, 0 failed" in done.stdout
    assert [request.path for request in agent.log] == [f"/api/models/{AGENT}/revision/main"]
    assert (folder / "download.json").read_bytes() == written
    (folder / "download.json").unlink()  # without the record the checksums tell
    agent.log.clear()
    assert "0 files fetched, 6 already there" in fetch().stdout
    assert len(agent.log) == 1
    assert record(folder) == json.loads(written)
    (folder / "config.json").unlink()
    agent.log.clear()
    assert "1 files fetched (23 B), 5 already there" in fetch().stdout
    assert agent.fetched()[1:] == [resolve("config.json")]


def test_a_dry_run_fetches_nothing(agent, root, fetch):
    done = fetch("--dry_run")
    assert (done.returncode, done.stderr, root.exists()) == (0, "", False)
    assert "6 files, 8.0 kB; to fetch: 6 files, 8.0 kB, into " in done.stdout
    assert "5.0 kB  pytorch_model-00001-of-00002.bin\n" in done.stdout
    assert len(agent.log) == 1


@pytest.mark.parametrize("revision", [FIRST, f"agent={FIRST}"])
def test_a_pinned_revision(agent, folder, fetch, revision):
    agent.put(AGENT, "model", WEIGHTS | {"config.json": b"newer"}, SECOND)
    assert fetch("--revision", revision).returncode == 0
    assert content(folder)["config.json"] == WEIGHTS["config.json"]
    assert (record(folder)["revision"], record(folder)["commit"]) == (FIRST, FIRST)


def test_another_commit_replaces_what_the_first_put_there(agent, folder, fetch):
    fetch()
    agent.put(AGENT, "model", WEIGHTS | {"config.json": b"newer"}, SECOND)
    agent.log.clear()
    done = fetch()
    assert f"commit {SECOND}, from" in done.stdout
    assert f"instead of commit {FIRST}" in done.stdout
    assert agent.fetched()[1:] == [resolve("config.json", SECOND)]
    assert content(folder)["config.json"] == b"newer"
    assert record(folder)["commit"] == SECOND


def test_somebodys_files_are_kept(agent, folder, fetch):
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine too")
    done = fetch()
    assert done.returncode == 1
    assert "kept, though not as published (--overwrite replaces): config.json\n" in done.stdout
    assert "5 files fetched" in done.stdout
    assert (content(folder)["config.json"], content(folder)["notes.txt"]) == (b"mine", b"mine too")
    assert record(folder)["complete"] is False
    (folder / "README.md").write_bytes(b"changed after the download")
    done = fetch("--dry_run")
    assert "(--overwrite replaces): README.md, config.json\n" in done.stdout
    assert fetch("--overwrite").returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED} | {"notes.txt": b"mine too"}
    assert record(folder)["complete"] is True


def test_bit_rot_is_found_on_request(agent, folder, fetch):
    fetch()
    shard = folder / "pytorch_model-00001-of-00002.bin"
    before = shard.stat()
    shard.write_bytes(bytes(5000))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "0 files fetched" in fetch().stdout
    assert "1 files fetched" in fetch("--verify").stdout
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}


def test_linked_folders(agent, root, folder, fetch, tmp_path):
    """Weights often lie on another disk."""
    (tmp_path / "scratch").mkdir()
    root.mkdir()
    (root / "model_weights").symlink_to(tmp_path / "scratch")
    assert fetch().returncode == 0
    assert content(tmp_path / "scratch/MMRole-Agent") == {name: WEIGHTS[name] for name in FETCHED}
    assert (root / "model_weights").is_symlink()


# --- resuming and verifying -----------------------------------------------------------------------------------------
def is_within_last_file(folder: Path) -> bool:
    """Whether all files are there but one, which is there in part."""
    try:
        return len(content(folder)) >= 8 and sum(path.stat().st_size for path in folder.rglob("*.part")) == HALF
    except FileNotFoundError:  # one has just been finished, and renamed
        return False


def test_a_killed_download_goes_on_inside_a_file(agent, root, folder, hub_env, start, fetch):
    agent.put(AGENT, "model", WEIGHTS | {"shard.bin": SHARD}, FIRST)
    agent.faults[resolve("shard.bin")] = ["stall"]
    process = start("agent", "--data_root", root, **hub_env, HF_HUB_DOWNLOAD_TIMEOUT="60")
    while not is_within_last_file(folder):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    agent.log.clear()
    done = fetch()
    assert done.returncode == 0, done.stdout
    assert agent.ranges_of(resolve("shard.bin")) == [f"bytes={HALF}-"]
    assert agent.fetched()[1:] == [resolve("shard.bin")]  # no finished file
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED} | {"shard.bin": SHARD}
    assert not (folder / ".download").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_file_goes_on_by_itself(agent, folder, fetch, ranges):
    agent.put(AGENT, "model", {"shard.bin": SHARD}, FIRST)
    agent.ranges = ranges
    agent.faults[resolve("shard.bin")] = ["close"]
    assert fetch().returncode == 0
    assert agent.ranges_of(resolve("shard.bin")) == [None, f"bytes={HALF}-"]
    assert content(folder) == {"shard.bin": SHARD}


def test_a_wrong_checksum_is_never_accepted(agent, folder, fetch):
    name = "pytorch_model-00001-of-00002.bin"
    agent.faults = {resolve(name): ["damage"] * 2, resolve("config.json"): ["damage"] * 2}
    done = fetch("--retries", "1")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"the content does not match its checksum: config.json, {name}\n" in done.stdout
    assert not (folder / name).exists()
    assert record(folder)["complete"] is False
    agent.faults = {resolve(name): ["damage"], resolve("config.json"): ["damage"]}
    assert fetch("--retries", "1").returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}


def test_a_longer_leftover_does_not_confuse(agent, folder, fetch):
    agent.faults[resolve("config.json")] = ["404"] * 9
    assert fetch().returncode == 1
    [part] = (folder / ".download").glob("*.part") if (folder / ".download").exists() else [None]
    assert part is not None
    part.write_bytes(bytes(1000))
    assert fetch().returncode == 1
    agent.faults.clear()
    assert fetch().returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}


FAULTS = ["404", "500", "503", "429 0", "html", "truncate", "too short", "hang up", "silence", "damage"]


def test_a_bad_hub_never_leaves_a_bad_file(hub, folder, fetch):
    files = {f"{fault}.json": f"{fault}".encode() * 200 for fault in FAULTS} | {"sound.json": b"sound"}
    hub.put(AGENT, "model", files, FIRST)
    hub.faults = {resolve(f"{fault}.json"): [fault] for fault in FAULTS}
    hub.faults[resolve("500.json")] *= 9
    done = fetch("--retries", "2")
    assert (done.returncode, done.stderr) == (1, "")
    failed = {"404.json", "500.json"}
    assert content(folder).items() >= {name: files[name] for name in files if name not in failed}.items()
    assert not failed & content(folder).keys()
    assert "  HTTP 404 Not Found: 404.json\n" in done.stdout
    assert "  HTTP 500 Internal Server Error: 500.json\n" in done.stdout
    assert f"{len(files) - 2} files fetched" in done.stdout
    hub.faults.clear()
    hub.log.clear()
    assert fetch().returncode == 0
    assert content(folder) == files
    assert sorted(hub.fetched()[1:]) == sorted(map(resolve, failed))


# --- mistakes and outages: one line ---------------------------------------------------------------------------------
def one_line(done: subprocess.CompletedProcess, *texts: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr


def test_no_network(fetch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        one_line(fetch(HF_ENDPOINT=url), f"cannot list {AGENT} at {url}: no usable answer: ", "check the network")


def test_unknown_repository_and_revision(hub, fetch):
    one_line(fetch(), f"cannot list {AGENT} at revision main: no such repository at {hub.url}")
    hub.put(AGENT, "model", WEIGHTS, FIRST)
    one_line(fetch("--revision", "v9"), f"cannot list {AGENT} at revision v9: no such revision")


def test_a_hub_that_fails(agent, fetch):
    agent.faults["info"] = ["500", "503"]
    assert fetch("--dry_run").returncode == 0
    agent.faults["info"] = ["500"] * 9
    one_line(fetch("--retries", "1"), f"cannot list {AGENT} at revision main: HTTP 500")


def test_a_hub_without_checksums(agent, fetch):
    for info in agent.infos.values():
        info["siblings"] = [{"rfilename": "config.json"}]
    one_line(fetch(), "tells no size and checksum of config.json")


def test_names_that_lead_out_are_left_aside(agent, root, folder, fetch):
    bad = ["../../evil.bin", "/evil.bin", "a/../../evil.bin", "C:/evil.bin", "a\\evil.bin", "a/\nevil.bin", ".ssh/evil"]
    agent.put(AGENT, "model", dict.fromkeys(bad, b"evil") | {"good.bin": b"good"}, FIRST)
    done = fetch()
    assert done.returncode == 0
    assert content(folder) == {"good.bin": b"good"}
    assert not list(root.parent.rglob("*evil*"))
    assert "left aside: ../../evil.bin, /evil.bin" in done.stdout
    assert "'a/\\nevil.bin'" in done.stdout


def test_no_room(agent, root, fetch):
    for info in agent.infos.values():
        info["siblings"][-1]["size"] = 10**16
    done = fetch()
    assert done.returncode == 2
    assert done.stderr.startswith("error: 10000000.0 GB needed, but only ")
    assert not (root / "model_weights").exists()


def test_a_full_disk(agent, folder, on_small_disk):
    agent.put(AGENT, "model", {"config.json": b"{}", "model.bin": SHARD[:150_000]}, FIRST)
    code = f"""
import os
os.environ["HF_ENDPOINT"] = "{agent.url}"
from mmrole.base.errors import run
from data_utils.download import repository
from data_utils.download.__main__ import main
repository.check_room = lambda folder, size: None  # another program takes the room meanwhile
run(lambda: main(["agent", "--data_root", str(folder)]))
"""
    done = on_small_disk(code)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert done.stderr.count("\n") == 1


def test_two_at_once_are_refused(agent, root, folder, hub_env, start, fetch):
    agent.faults[resolve("config.json")] = ["silence"]
    first = start("agent", "--data_root", root, **hub_env, HF_HUB_DOWNLOAD_TIMEOUT="600")
    while resolve("config.json") not in agent.fetched():
        time.sleep(0.01)
    second = fetch()
    assert second.returncode == 2
    assert second.stderr.startswith("error: another download is writing into ")
    first.kill()
    first.wait()
    assert fetch().returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}
    assert record(folder)["complete"] is True


def test_a_damaged_record_is_named(agent, folder, fetch):
    folder.mkdir(parents=True)
    (folder / "download.json").write_text('{"commit": 1}')
    one_line(fetch(), str(folder / "download.json"), "remove it")


# --- tokens, caches, offline ----------------------------------------------------------------------------------------
def test_the_token_goes_to_the_hub_only(agent, server, folder, fetch):
    large = [name for name in FETCHED if len(WEIGHTS[name]) >= 1000]
    server.files = {resolve(name): WEIGHTS[name] for name in large}
    agent.cdn = server.url.replace("127.0.0.1", "localhost")
    assert fetch(HF_TOKEN="hf_secret").returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in agent.log)
    assert sorted(server.fetched()) == sorted(map(resolve, large))
    assert not any("authorization" in map(str.lower, request.headers) for request in server.log)


@pytest.fixture
def cached(agent, repository, tmp_path, hub_env) -> None:
    """The agent's files in the hub's cache, as another program's download left them."""
    code = """
import sys
from huggingface_hub import hf_hub_download
for name in sys.argv[2:]:
    hf_hub_download(sys.argv[1], name)
"""
    environment = os.environ | hub_env | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", code, AGENT, *FETCHED], env=environment, check=True)
    agent.log.clear()


@pytest.mark.usefixtures("cached")
def test_the_cache_saves_the_transfer(agent, folder, fetch, tmp_path):
    [damaged] = (tmp_path / "hf_home/hub").rglob("snapshots/*/README.md")
    damaged.resolve().write_bytes(b"# Agxnt\n")
    done = fetch()
    assert done.returncode == 0
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}
    assert agent.fetched() == [f"/api/models/{AGENT}/revision/main", resolve("README.md")]
    assert "6 files fetched" in done.stdout


@pytest.mark.usefixtures("cached")
def test_offline_from_the_cache(agent, folder, fetch):
    done = fetch(HF_HUB_OFFLINE="1")
    assert (done.returncode, agent.log) == (0, [])
    assert f"commit {FIRST}, from the hub's cache\n" in done.stdout
    assert content(folder) == {name: WEIGHTS[name] for name in FETCHED}
    assert record(folder)["commit"] == FIRST
    assert "0 files fetched, 6 already there" in fetch(HF_HUB_OFFLINE="1").stdout


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("lost", ["pytorch_model-00002-of-00002.bin", "pytorch_model*.bin"])
def test_offline_with_half_a_cache(folder, fetch, tmp_path, lost):
    snapshot = next((tmp_path / "hf_home/hub").glob("*/snapshots/*"))
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (snapshot / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for path in snapshot.glob(lost):
        path.unlink()
    one_line(fetch(HF_HUB_OFFLINE="1"), f"{AGENT} at revision main is not in the hub's cache")
    assert not folder.exists()


def test_offline_without_cache(agent, folder, fetch, tmp_path):
    one_line(fetch(HF_HUB_OFFLINE="1"), f"{AGENT} at revision main is not in the hub's cache", "HF_HUB_OFFLINE")
    assert fetch().returncode == 0
    agent.log.clear()
    done = fetch(HF_HUB_OFFLINE="1")
    assert (done.returncode, agent.log) == (0, [])
    assert "0 files fetched, 6 already there" in done.stdout
    (folder / "README.md").unlink()
    done = fetch(HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "not in the hub's cache, or damaged there, and HF_HUB_OFFLINE is set: README.md" in done.stdout
