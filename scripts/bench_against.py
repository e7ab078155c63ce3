"""Two versions of the code on the same benchmark, in one call: what `--against` of the benchmarks does.

Not a script of its own; `bench_answers.py` and `bench_review.py` import it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrole.base.errors import UserError

RUNS = 3


def add_against(parser: argparse.ArgumentParser) -> None:
    """Adds `--against`."""
    parser.add_argument(
        "--against",
        type=Path,
        metavar="WORKTREE",
        help=f"run this version and that in a worktree {RUNS} times in turn, and compare the engine's best times",
    )


def compare_versions(script: Path, worktree: Path, argv: Sequence[str] | None) -> int:
    """Runs a benchmark of this version and its namesake of another in turn; prints the engine's best seconds of each.

    Args:
        script: the benchmark.
        worktree: where the other version is checked out.
        argv: the benchmark's arguments; `--against` is left out.

    Raises:
        UserError: there is no such benchmark, or one fails.
    """
    own = script.resolve().parents[1]
    other = (worktree / script.resolve().relative_to(own)).resolve()
    if not other.is_file():
        raise UserError(f"--against {worktree}: there is no {other}; give the root of a worktree of another version")
    without = argparse.ArgumentParser(add_help=False)
    without.add_argument("--against")
    _, flags = without.parse_known_args(argv)
    best: dict[Path, float] = {}
    for run in range(1, RUNS + 1):
        for root, file in ((own, script.resolve()), (other.parents[1], other)):
            seconds = engine_seconds(root, file, flags)
            best[root] = min(seconds, best.get(root, seconds))
            print(f"run {run}: {seconds:7.1f} s  {root}", flush=True)
    for root, seconds in best.items():
        print(f"best of {RUNS}: {seconds:7.1f} s  {root}")
    print(f"this version takes {best[own] / best[other.parents[1]]:.3f} times as long as {worktree}")
    return 0


def engine_seconds(root: Path, script: Path, flags: Sequence[str]) -> float:
    """Seconds of the engine's row in what a benchmark prints, run with the code of its own version."""
    command = [sys.executable, str(script), *flags]
    # What is installed may be the other version; what PYTHONPATH names comes first.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    row = re.search(r"^\(b\) engine\D*(?:[\d.]+ +){3}([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or row is None:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{script} failed: {words[-1] if words else 'it printed nothing'}")
    return float(row[1])
