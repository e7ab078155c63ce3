"""docs/models.md: all agents of the paper are on it, and each leads to a section."""

import re

from mmrole.scoring.paper import PAPER_ROWS


def test_every_agent_of_the_paper_has_its_command(repository):
    page = (repository / "docs/models.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| .* \| \[.*\]\(#(.+)\) \|$", page, re.MULTILINE)
    assert {name for names, _ in rows for name in names.split(", ")} == {row.model for row in PAPER_ROWS}
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert {section for _, section in rows} <= sections
