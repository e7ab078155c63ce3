"""Jobs need no torch: their tests pass where it cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif("MMROLE_WITHOUT_TORCH" in os.environ, reason="this is the run without torch")
def test_the_tests_of_jobs_pass_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text('raise ModuleNotFoundError("torch is kept out", name="torch")\n')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).parent],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "MMROLE_WITHOUT_TORCH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
