"""The tests themselves: what a machine lacks is no error."""

import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from mmrole.base.paths import cache_folder


def test_pytest_runs_without_xdist(repository):
    command = (sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "--collect-only", "tests/data_utils")
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "tests collected" in done.stdout


def test_the_users_cache_is_left_alone_but_for_what_deepspeed_builds():
    folder = cache_folder()
    assert folder is not None
    assert folder.parent.name.startswith("mmrole-tests-")
    assert not Path(get_default_build_root()).is_relative_to(folder.parent)
