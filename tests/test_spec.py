"""What docstrings and comments cite of the specification of Qwen-VL is there."""

import re


def test_every_citation_names_a_section(repository):
    text = (repository / "docs/qwen_vl_spec.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?)[. ]", text, re.MULTILINE))
    cited = {}
    for folder in ("mmrole", "data_utils", "scripts", "tests"):
        for file in (repository / folder).rglob("*.py"):
            for number in re.findall(r"spec §(\d+(?:\.\d+)?)", file.read_text(encoding="utf-8")):
                cited.setdefault(number, file)
    assert len(cited) > 10
    assert {number: file for number, file in cited.items() if number not in sections} == {}
