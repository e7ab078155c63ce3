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
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
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
        together: it shows that a script runs, and does so beside the other parts of this kind.
    """

    half: int
    seconds: int
    about: str
    together: bool = False


PARTS = {
    "correct": Part(1, 60, "Greedy tokens in float32, without TF32"),
    "reviews": Part(1, 110, "Reviews: 12 answers with 8 reviews each"),
    "answers": Part(1, 75, "Answers: 32 prompts, 64 tokens each"),
    "prefill": Part(1, 40, "Reading prompts, and a decoding step"),
    "small_card": Part(1, 45, "A card of 24 GB, by a limit of memory"),
    "training": Part(2, 100, "Training, forward and backward, gradient checkpointing"),
    "finetune_ds": Part(2, 110, "finetune/finetune_ds.sh, 6 steps of a small model", together=True),
    "finetune_lora_ds": Part(2, 110, "finetune/finetune_lora_ds.sh, 2 steps of a small model", together=True),
    "finetune": Part(2, 110, "finetune.py without DeepSpeed, 6 steps of a small model", together=True),
    "inference": Part(2, 110, "inference.sh, a small model", together=True),
    "RM_review": Part(2, 110, "eval/RM_review.sh, a small model", together=True),
    "loading": Part(2, 75, "From files to the first token"),
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
    left = dict.fromkeys(range(1, 3), float(HALF_SECONDS))
    with open(arguments.output_dir / "bench_gpu.log", "w", encoding="utf-8") as log:
        for names in groups(chosen):
            half, began = PARTS[names[0]].half, time.monotonic()
            limits = [PARTS[name].seconds if arguments.part else min(PARTS[name].seconds, left[half]) for name in names]
            print(*(f"== {name}: {PARTS[name].about}" for name in names), sep="\n", flush=True)
            with ThreadPoolExecutor(len(names)) as threads:
                work = [
                    threads.submit(run_part, name, limit, arguments, log)
                    for name, limit in zip(names, limits, strict=True)
                ]
            left[half] -= time.monotonic() - began
            for name, result in zip(names, [each.result() for each in work], strict=True):
                report["parts"].append({"part": name, "about": PARTS[name].about, **result})
                print(f"{name}: {result['outcome']}, {result['seconds']} s", flush=True)
            write(report, arguments.output_dir)
    return int(any(part["outcome"] != "done" for part in report["parts"]))


def groups(names: Sequence[str]) -> list[list[str]]:
    """Parts that run at the same time: each alone, but for neighbours that run together."""
    grouped = groupby(names, key=lambda name: "together" if PARTS[name].together else name)
    return [list(members) for _, members in grouped]


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
        for place in (sys.stdout, log):
            print(f"[{name}] {line}", end="", file=place, flush=True)
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
        run = f" Of another run: commit {part['commit']}, {part['date']}." if "commit" in part else ""
        lines += [f"`{part['part']}`: {outcome}, {part['seconds']} s.{run}", ""]
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
