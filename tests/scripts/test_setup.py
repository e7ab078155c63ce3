"""`scripts/setup.sh` refuses what it cannot use, in one line; the tested versions lie within the stated ranges."""

import os
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def requirements(path: Path) -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    parsed = [Requirement(line) for line in lines if line]
    return {requirement.name.replace("_", "-"): requirement for requirement in parsed}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_tested_versions_lie_within_the_ranges(repository, name):
    pins = requirements(repository / "constraints.txt")
    for package, requirement in requirements(repository / name).items():
        (pin,) = pins[package].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), package
