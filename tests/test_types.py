"""The types: a test and no line of scripts/test.sh, since it takes a core for a minute beside the other tests."""

import subprocess
import sys
from pathlib import Path


def test_basedpyright_finds_no_error(repository):
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [checker, "--pythonpath", sys.executable], cwd=repository, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
