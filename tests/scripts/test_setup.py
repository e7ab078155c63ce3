"""`scripts/setup.sh` refuses what it cannot use, in one line, before it installs anything."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=inherited | environment, capture_output=True, text=True
    )


def test_help_names_the_variables():
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("PYTHON", "VIRTUAL_ENV", "TORCH_INDEX_URL", "--dev"))


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--unknown"], {}, "--unknown"),
        ([], {"PYTHON": "/nowhere/python"}, "/nowhere/python"),
        ([], {"VIRTUAL_ENV": "/nowhere"}, "/nowhere/bin/python"),
    ],
)
def test_a_mistake_gets_one_line(arguments, environment, said):
    done = run(*arguments, **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *version_info*) exit 1 ;; -V) echo Python 3.9.1 ;; esac\n', encoding="utf-8"
    )
    old.chmod(0o755)
    done = run(PYTHON=str(old))
    assert done.returncode == 2
    assert "Python 3.9.1" in done.stderr
    assert done.stderr.count("\n") == 1
