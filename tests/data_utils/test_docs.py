"""What docs/data.md shows as commands runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmrole.base.files import read_records
from mmrole.data.records import Sample, TrainingRecord


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs/data.md").read_text(encoding="utf-8")


def test_bring_your_own_character(page: str, tmp_path: Path):
    section = page.partition("## Bring your own character")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(blocks)
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = read_records(tmp_path / "my_data/data/train/train.json", TrainingRecord)
    assert {sample.type for sample in trained} == {"comment", "human-role"}
    tests = sorted((tmp_path / "my_data/data/test/in-distribution").glob("*.json"))
    assert [len(read_records(path, Sample)) for path in tests] == [1, 1]


def test_commands_on_the_page_have_the_flags_that_it_names(page: str, repository: Path):
    for module, flags in re.findall(r"^python -m (data_utils\.\w+)((?:[^\n]|\\\n)*)$", page, re.MULTILINE):
        command = [sys.executable, "-m", module, "--help"]
        known = subprocess.check_output(command, cwd=repository, text=True)
        for flag in re.findall(r"--\w+", flags):
            assert flag in known, (module, flag)
