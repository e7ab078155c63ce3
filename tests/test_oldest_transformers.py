"""All tests but the long ones pass with the oldest transformers that requirements.txt allows."""

import os
import re
import subprocess
import sys

import pytest

TWO_AT_A_TIME = ("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")  # as scripts/test.sh


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_oldest_transformers(repository, tmp_path):
    oldest = re.search(r"^transformers>=([\d.]+)", (repository / "requirements.txt").read_text(), re.MULTILINE)[1]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    # It takes no huggingface_hub 2; what else it needs is what newer ones need.
    subprocess.run([*install, f"transformers=={oldest}.0", "huggingface_hub>=1.31,<2"], check=True)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == f"{oldest}.0"
    subprocess.run([sys.executable, "-m", "pytest", "-q", *TWO_AT_A_TIME], cwd=repository, env=environment, check=True)
