"""What the README shows as a command or as code runs as it stands there."""

import re
import shlex
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_on_the_tiny_checkpoint(readme, repository, tmp_path):
    for name in ("scripts", "LICENSE"):
        (tmp_path / name).symlink_to(repository / name)
    command = re.search(r"^python (scripts/make_tiny_checkpoint\.py .*)$", readme, re.MULTILINE)[1]
    code = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[1]
    for arguments in (shlex.split(command), ["-c", code]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_file_that_it_names_exists(readme, repository):
    tree = re.search(r"## What is where\n\n```\n(.*?)```", readme, re.DOTALL)[1]
    folder = ""
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        path = folder + name if indent else name
        if not indent:
            folder = name if name.endswith("/") else ""
        assert (repository / path).exists(), path
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (repository / link).exists(), link


def test_every_dependency_is_explained(readme, repository):
    requirements = (repository / "requirements.txt").read_text(encoding="utf-8")
    for name in re.findall(r"^[a-zA-Z0-9_-]+", requirements, re.MULTILINE):
        assert f"| {name} |" in readme, name
