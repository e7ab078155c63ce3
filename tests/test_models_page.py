"""docs/models.md: all agents of the paper are on it, each leads to a section, and commands are understood."""

import re
import subprocess
import sys

import pytest

from mmrole.scoring.paper import PAPER_ROWS


@pytest.fixture
def page(repository) -> str:
    return (repository / "docs/models.md").read_text("utf-8")


def test_every_agent_of_the_paper_has_its_command(page):
    rows = re.findall(r"^\| ([^|]+) \| .* \| \[.*\]\(#(.+)\) \|$", page, re.MULTILINE)
    assert {name for names, _ in rows for name in names.split(", ")} == {row.model for row in PAPER_ROWS}
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert {section for _, section in rows} <= sections


def test_the_commands_have_flags_and_variables_of_the_scripts(page, repository):
    help_ = subprocess.check_output([sys.executable, "inference.py", "--help"], cwd=repository, text=True)
    script = (repository / "inference.sh").read_text("utf-8")
    commands = re.findall(r"((?:[A-Z_]+=\S+ +(?:\\\n +)?)+)bash inference\.sh(.*)", page)
    assert len(commands) >= 7
    for variables, flags in commands:
        assert all(f"#   {name} " in script for name in re.findall(r"([A-Z_]+)=", variables))
        assert all(f"{flag} " in help_ for flag in re.findall(r"--\w+", flags))
