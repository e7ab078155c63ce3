"""Runs the parts of the GPU benchmark, each in a process of its own and with a limit of time, and makes a table.

    bash scripts/bench_gpu.sh --output_dir DIR                  # everything, in two halves of at most four minutes
    bash scripts/bench_gpu.sh --output_dir DIR --half 1         # one half
    bash scripts/bench_gpu.sh --output_dir DIR --part reviews prefill

Writes bench_gpu.json and bench_gpu.md into --output_dir after each part, and bench_gpu.log with what the parts say and
after how many seconds. A part that fails, or takes too long, fails alone: its last line is in the table, with the
figures that it had measured. One that takes too long says in the log where its processes stand.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from bench_gpu_process import Ending, PartProcess

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HALF_SECONDS = 240
LEAST_SECONDS = 5
"""Of a half, with which a part is begun at all."""


class Part(NamedTuple):
    """A part of the benchmark; `bench_gpu_part.py` runs it.

    Its process starts, and imports what it needs, while the part before it is at work.

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
    "correct": Part(1, 55, "Greedy tokens in float32, without TF32"),
    "reviews": Part(1, 100, "Reviews: 12 answers with 8 reviews each"),
    "answers": Part(1, 60, "Answers: 32 prompts, 64 tokens each"),
    "prefill": Part(1, 40, "Reading prompts, and a decoding step"),
    "small_card": Part(1, 50, "A card of 24 GB, by a limit of memory"),
    "training": Part(2, 95, "Training, forward and backward, gradient checkpointing"),
    "finetune_ds": Part(2, 105, "finetune/finetune_ds.sh, 6 steps of a small model", together=True),
    "finetune_lora_ds": Part(2, 105, "finetune/finetune_lora_ds.sh, 2 steps of a small model", together=True),
    "finetune": Part(2, 105, "finetune.py without DeepSpeed, 6 steps of a small model", together=True),
    "inference": Part(2, 105, "inference.sh, a small model", together=True),
    "RM_review": Part(2, 105, "eval/RM_review.sh, a small model", together=True),
    "loading": Part(2, 60, "From files to the first token"),
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
    run_parts(chosen, arguments, report)
    return int(any(part["outcome"] != "done" for part in report["parts"]))


def run_parts(chosen: Sequence[str], arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Runs parts, and writes the report after each."""
    left = dict.fromkeys(range(1, 3), float(HALF_SECONDS))
    started: list[PartProcess] = []
    with open(arguments.output_dir / "bench_gpu.log", "w", encoding="utf-8") as log:
        try:
            coming: dict[str, PartProcess] = {}
            for names, names_after in pairwise([[], *groups(chosen), []]):
                parts, coming = coming, {name: start_part(name, arguments, log) for name in names_after}
                started += coming.values()
                if not names:
                    continue
                print(*(f"== {name}: {PARTS[name].about}" for name in names), sep="\n", flush=True)
                half, began = PARTS[names[0]].half, time.monotonic()
                endings = run_together(parts, {name: limit_of(name, arguments, left[half]) for name in names})
                left[half] -= time.monotonic() - began
                report["parts"] += [result_of(name, ending, arguments) for name, ending in endings.items()]
                write(report, arguments.output_dir)
        finally:
            for part in started:
                part.end()


def limit_of(name: str, arguments: argparse.Namespace, left: float) -> float:
    """The seconds that a part may take, of those that are left of its half."""
    if arguments.device == "cpu":  # the limits are a GPU's
        return HALF_SECONDS
    return PARTS[name].seconds if arguments.part else min(PARTS[name].seconds, left)


def groups(names: Sequence[str]) -> list[list[str]]:
    """Parts that run at the same time: each alone, but for neighbours that run together."""
    grouped = groupby(names, key=lambda name: "together" if PARTS[name].together else name)
    return [list(members) for _, members in grouped]


def start_part(name: str, arguments: argparse.Namespace, log: TextIO) -> PartProcess:
    """Starts a part's process, which waits for its turn; what it says goes to the terminal and the log."""
    figures_of(name, arguments).unlink(missing_ok=True)
    command = [sys.executable, "-u", str(HERE / "bench_gpu_part.py"), name, "--in_turn"]
    command += ["--figures", str(figures_of(name, arguments)), "--shape", arguments.shape]
    command += ["--device", arguments.device]

    def hear(when: str, line: str) -> None:
        for place in (sys.stdout, log):
            print(f"[{name} {when}] {line}", end="", file=place, flush=True)

    return PartProcess(command, ROOT, hear)


def run_together(parts: Mapping[str, PartProcess], limits: Mapping[str, float]) -> dict[str, Ending]:
    """Lets parts run at the same time, each for so many seconds at the most."""
    if min(limits.values()) < LEAST_SECONDS:
        return dict.fromkeys(parts, Ending("not run: the half's four minutes are over", 0.0))
    for name, part in parts.items():
        part.begin(limits[name])
    return {name: part.wait() for name, part in parts.items()}


def result_of(name: str, ending: Ending, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the report says of a part."""
    print(f"{name}: {ending.words}, {ending.seconds:.1f} s", flush=True)
    file = figures_of(name, arguments)
    measured = file.read_text("utf-8").splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return {
        "part": name,
        "about": PARTS[name].about,
        "outcome": ending.words,
        "seconds": round(ending.seconds, 1),
        "figures": [json.loads(line) for line in measured],
    }


def figures_of(name: str, arguments: argparse.Namespace) -> Path:
    """The file of a part's figures."""
    return arguments.output_dir.resolve() / f"{name}.figures"


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


if __name__ == "__main__":
    sys.exit(main())
