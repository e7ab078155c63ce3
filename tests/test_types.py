"""The types: a test and no line of scripts/test.sh, since it takes a core for a minute beside the other tests."""

import re
import subprocess
import sys
from pathlib import Path


def test_basedpyright_finds_no_error(repository):
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [checker, "--pythonpath", sys.executable], cwd=repository, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_checker_passes_over_has_a_reason(repository):
    """Each names its rule; a comment in the line or above it says why, or above the first of that kind in the file."""
    tracked = [
        path for folder in ("mmrole", "data_utils", "scripts", "eval") for path in (repository / folder).rglob("*.py")
    ]
    for path in [*tracked, *repository.glob("*.py")]:
        explained = set()
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines):
            if "pyright: ignore" not in line:
                continue
            rule = re.search(r"# pyright: ignore\[(\w+(?:, \w+)*)\]", line)
            assert rule, f"{path}:{number + 1} names no rule"
            above = lines[max(0, number - 1)].strip()
            if above.startswith("#") or line.count("#") > 1:
                explained.add(rule[1])
            assert rule[1] in explained, f"{path}:{number + 1} gives no reason"
