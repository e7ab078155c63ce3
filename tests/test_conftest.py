"""The tests themselves: what a machine lacks is no error."""

import subprocess
import sys


def test_pytest_runs_without_xdist(repository):
    command = (sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "--collect-only", "tests/data_utils")
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "tests collected" in done.stdout
