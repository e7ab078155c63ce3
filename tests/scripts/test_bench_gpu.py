"""`scripts/bench_gpu.sh` on the CPU: each part runs on a tiny model, and a part that fails fails alone."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

LONG = pytest.mark.long
FIGURES = {
    "correct": ("golden answers of ckpt_mini, the same", "2 of 2"),
    "reviews": ("with the tokens of generate()", "1 of 1"),
    "answers": ("with the tokens of generate()", "2 of 2"),
    "prefill": ("leaves of a step", 4),
    "training": ("(a) the published way, samples", 1),
    "loading": ("weight files", None),
    "small_card": ("limit", 21.0),
}


@pytest.fixture
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the scripts, which import one another."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    return repository / "scripts"


@pytest.fixture
def bench(repository: Path, tmp_path: Path) -> Callable[..., dict]:
    """Runs the whole script; returns its report."""

    def run(*flags: str, status: int = 0) -> dict:
        command = ["bash", str(repository / "scripts/bench_gpu.sh"), "--output_dir", str(tmp_path), *flags]
        done = subprocess.run(
            command, capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads((tmp_path / "bench_gpu.json").read_text("utf-8"))

    return run


@pytest.mark.parametrize("part", FIGURES)
def test_a_part_gives_its_figures(scripts, tmp_path, part):
    file = tmp_path / "figures"
    assert (
        import_module("bench_gpu_part").main([part, "--shape", "tiny", "--device", "cpu", "--figures", str(file)]) == 0
    )
    figures = {row["what"]: row["value"] for row in map(json.loads, file.read_text("utf-8").splitlines())}
    what, value = FIGURES[part]
    assert what in figures
    assert value is None or figures[what] == value
    assert not any(str(value).startswith("failed") for value in figures.values())


def test_every_part_has_a_place(scripts):
    parts = [part for names in import_module("bench_gpu_part").MODULES.values() for part in names]
    bench = import_module("bench_gpu")
    assert sorted(parts) == sorted(bench.PARTS)
    assert [names for names in bench.groups(list(bench.PARTS)) if len(names) > 1] == [
        ["finetune_ds", "finetune_lora_ds", "finetune", "inference", "RM_review"]
    ]
    for module, names in import_module("bench_gpu_part").MODULES.items():
        assert all(callable(getattr(import_module(module), name)) for name in names)


def test_a_part_that_fails_fails_alone(bench, tmp_path):
    report = bench("--part", "prefill", "--shape", "tiny", "--device", "cuda", status=1)
    (part,) = report["parts"]
    assert part["outcome"] == (
        "failed: error: torch finds no GPU; --device cpu --shape tiny shows whether the benchmark runs"
    )
    assert {"card", "driver", "torch", "transformers", "triton", "commit", "date"} <= report.keys()
    page = (tmp_path / "bench_gpu.md").read_text("utf-8")
    assert part["outcome"] in page


HANGS = """
import subprocess, sys, time
print("sets out", flush=True)
child = "import time; print('hangs', flush=True); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)  # as torchrun starts its own
print(process.pid, flush=True)
process.wait()
"""


def test_a_part_that_hangs_says_where_and_ends_with_all_it_has_begun(scripts, tmp_path, monkeypatch):
    process = import_module("bench_gpu_process")
    monkeypatch.setattr(process, "SECONDS_TO_SPEAK", 1)
    heard = []
    part = process.PartProcess([sys.executable, "-c", HANGS], tmp_path, lambda *words: heard.append(words))
    part.begin(4)
    outcome = part.wait()
    assert re.fullmatch(r"stopped after [4-9] s; its last line, at \d+\.\d s: (hangs|\d+)", outcome.words)
    lines = [line.strip() for _, line in heard]
    assert {"sets out", "hangs"} <= set(lines)
    assert sum(bool(re.match(r"\d+ \d+\.\d s .*time", line)) for line in lines) == 2, lines  # both processes
    assert "Fatal Python error: Aborted" in lines
    assert 'File "<string>", line 1 in <module>' in lines
    (pid,) = (line for line in lines if line.isdecimal())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_part_waits_for_its_turn_and_goes_where_nobody_gives_it(scripts, tmp_path):
    process, heard = import_module("bench_gpu_process"), []
    code = "import sys; print('ready', flush=True); print('begins', repr(sys.stdin.readline()))"
    command = [sys.executable, "-c", code]
    part = process.PartProcess(command, tmp_path, lambda when, line: heard.append((when, line.strip())))
    while not heard:
        time.sleep(0.01)
    assert heard == [("early", "ready")]
    part.begin(60)
    assert part.wait().words == "done"
    assert heard[1][1] == r"begins '\n'"
    left = process.PartProcess([sys.executable, "-c", code], tmp_path, lambda when, line: None)
    left.end()
    left.end()


@LONG
def test_the_whole(bench):
    report = bench("--shape", "tiny", "--device", "cpu")
    assert {part["part"]: part["outcome"] for part in report["parts"]} == dict.fromkeys(
        import_module("bench_gpu").PARTS, "done"
    )


def test_figures_of_the_docs_are_those_of_the_committed_run(scripts, repository):
    bench = import_module("bench_gpu")
    report = json.loads((repository / "docs/bench_gpu.json").read_text("utf-8"))
    assert (repository / "docs/bench_gpu.md").read_text("utf-8") == bench.table(report)
    measured = {
        (part["part"], row["what"]): f"{bench.shown(row['value'])} {row['unit']}".strip()
        for part in report["parts"]
        for row in part["figures"]
    }
    page = (repository / "docs/gpu.md").read_text("utf-8").partition("## What was measured")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\| (.*?) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for part, what, _, reached in rows:
        assert reached == measured.get((part, what), "not measured"), what
