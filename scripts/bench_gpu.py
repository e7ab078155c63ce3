"""Runs the parts of the GPU benchmark, each in a process of its own and with a limit of time, and makes a table.

    bash scripts/bench_gpu.sh --output_dir DIR                  # everything, in two halves of at most four minutes
    bash scripts/bench_gpu.sh --output_dir DIR --half 1         # one half
    bash scripts/bench_gpu.sh --output_dir DIR --part reviews prefill

Writes bench_gpu.json and bench_gpu.md into --output_dir after each part, and bench_gpu.log with what the parts say. A
part that fails, or takes too long, fails alone: its last line is in the table, with the figures that it had measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HALF_SECONDS = 240


class Part(NamedTuple):
    """A part of the benchmark; `bench_gpu_part.py` runs it.

    Attributes:
        half: 1 or 2, in which it runs.
        seconds: its limit.
        about: what it measures, for the table.
    """

    half: int
    seconds: int
    about: str


PARTS = {
    "correct": Part(1, 60, "Greedy tokens in float32, without TF32"),
    "reviews": Part(1, 110, "Reviews: 12 answers with 8 reviews each"),
    "answers": Part(1, 75, "Answers: 32 prompts, 64 tokens each"),
    "prefill": Part(1, 40, "Reading prompts, and a decoding step"),
    "training": Part(1, 100, "Training, forward and backward, gradient checkpointing"),
    "loading": Part(2, 60, "From files to the first token"),
    "small_card": Part(2, 45, "A card of 24 GB, by a limit of memory"),
    "finetune_ds": Part(2, 100, "finetune/finetune_ds.sh, 6 steps of a small model"),
    "finetune_lora_ds": Part(2, 60, "finetune/finetune_lora_ds.sh, 2 steps of a small model"),
    "finetune": Part(2, 60, "finetune.py without DeepSpeed, 6 steps of a small model"),
    "inference": Part(2, 40, "inference.sh, a small model"),
    "RM_review": Part(2, 40, "eval/RM_review.sh, a small model"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 1 if one of them has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("bench_gpu"), help="where the tables go (default: %(default)s)")
    add("--part", nargs="+", choices=PARTS, metavar="NAME", help=f"only these parts: {', '.join(PARTS)}")
    add("--half", type=int, choices=(1, 2), help="only the parts of one half")
    add("--shape", choices=("real", "tiny"), default="real", help="Qwen-VL-Chat's 9.6B, or one that only runs")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where to run (default: %(default)s)")
    add("--commit", help="of this version; by default git is asked")
    arguments = parser.parse_args(argv)
    chosen = [
        name
        for name, part in PARTS.items()
        if (arguments.part is None or name in arguments.part) and arguments.half in (None, part.half)
    ]
    if not chosen:
        parser.error(f"--half {arguments.half} has none of these parts; leave out either")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**machine(arguments.commit), "shape": arguments.shape, "parts": []}
    print(", ".join(f"{name} {value}" for name, value in report.items() if name != "parts"), flush=True)
    used = {1: 0.0, 2: 0.0}
    with open(arguments.output_dir / "bench_gpu.log", "w", encoding="utf-8") as log:
        for name in chosen:
            part = PARTS[name]
            limit = min(part.seconds, HALF_SECONDS - used[part.half]) if arguments.part is None else part.seconds
            print(f"== {name}: {part.about} (at most {limit:.0f} s)", flush=True)
            result = run_part(name, limit, arguments, log)
            used[part.half] += result["seconds"]
            report["parts"].append({"part": name, "about": part.about, **result})
            write(report, arguments.output_dir)
            print(f"{name}: {result['outcome']}, {result['seconds']} s", flush=True)
    return int(any(part["outcome"] != "done" for part in report["parts"]))


def run_part(name: str, limit: float, arguments: argparse.Namespace, log: TextIO) -> dict[str, Any]:
    """Runs a part in a process of its own; copies what it says to the terminal and the log.

    Returns:
        Its outcome (`done`, or why not), its seconds, and its figures.
    """
    if limit < 5:
        return {"outcome": "not run: the half's four minutes are over", "seconds": 0.0, "figures": []}
    figures = arguments.output_dir.resolve() / f"{name}.figures"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-u", str(HERE / "bench_gpu_part.py"), name, "--figures", str(figures)]
    command += ["--shape", arguments.shape, "--device", arguments.device]
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    timer = threading.Timer(limit, end, [process])
    timer.start()
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        print(line, end="", file=log, flush=True)
        said += [line.strip()] if line.strip() else []
    code = process.wait()
    expired = not timer.is_alive()
    timer.cancel()
    end(process)  # what it has started and left behind
    outcome = "done" if code == 0 else f"stopped after {limit:.0f} s" if expired else f"failed: {_last(said)}"
    seconds = round(time.monotonic() - start, 1)
    measured = figures.read_text("utf-8").splitlines() if figures.exists() else []
    figures.unlink(missing_ok=True)
    return {"outcome": outcome, "seconds": seconds, "figures": [json.loads(line) for line in measured]}


def end(process: subprocess.Popen) -> None:
    """Kills a process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def machine(commit: str | None) -> dict[str, str]:
    """What the figures belong to: card, driver, versions, commit, date."""
    cards = ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "none, none"
    card, driver = cards.splitlines()[0].rsplit(", ", 1)
    if commit is None:
        commit = ask("git", "-C", str(ROOT), "rev-parse", "HEAD") or "not known"
        changed = ask("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
        commit += " and changes that are not committed" if changed else ""
    return {
        "card": card,
        "driver": driver,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "triton", "deepspeed", "peft")},
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def ask(*command: str) -> str:
    """What a command prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes the report in both forms."""
    for name, text in (("bench_gpu.json", json.dumps(report, indent=1) + "\n"), ("bench_gpu.md", table(report))):
        aside = folder / f"{name}.part"
        aside.write_text(text, "utf-8")
        aside.replace(folder / name)


def table(report: dict[str, Any]) -> str:
    """The report as a page."""
    about = [f"{name} {value}" for name, value in report.items() if name != "parts"]
    lines = ["# GPU benchmark", "", "`bash scripts/bench_gpu.sh`: " + ", ".join(about) + "."]
    for part in report["parts"]:
        lines += ["", f"## {part['about']}", ""]
        outcome = part["outcome"].replace("|", "\\|")
        lines += [f"`{part['part']}`: {outcome}, {part['seconds']} s.", ""]
        if part["figures"]:
            lines += ["| | | |", "|---|---|---|"]
            lines += [f"| {row['what']} | {shown(row['value'])} | {row['unit']} |" for row in part["figures"]]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure with three digits at least, none of them for show; a word as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _last(said: list[str]) -> str:
    return said[-1][:300] if said else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
