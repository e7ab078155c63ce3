"""What docs/architecture.md names is there, and it names every package."""

import importlib.util
import re

import pytest


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / "docs/architecture.md").read_text(encoding="utf-8")


def test_files_exist(page, repository):
    now = page.partition("## Where things were")[0]
    named = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|sh|md))?|\w+\.(?:py|sh))`", now)
    assert len(named) > 40
    for name in named:
        folder = (
            repository / "data_utils"
            if re.fullmatch(r"(?:build_\w+|check|describe)\.py|download/", name)
            else repository
        )
        assert (folder / name).exists(), name


def test_every_package_has_a_floor(page, repository):
    floors = page.partition("## Seams")[0]
    for package in (repository / "mmrole").iterdir():
        if (package / "__init__.py").exists():
            assert f"`mmrole/{package.name}/`" in floors, package.name


def test_new_places_of_old_modules_can_be_imported(page):
    rows = re.findall(r"^\| (`[^|]*) \| (`[^|]*) \|$", page.partition("## Where things were")[2], re.MULTILINE)
    assert len(rows) > 8
    for before, now in rows:
        package = re.match(r"`([\w.]+?)\.…`", now)
        for group in re.findall(r"\{([^}]*)\}", before) if package else ():
            for module in group.split(", "):
                renamed = re.search(rf"`{module}` is (?:part of )?`(\w+)`", now)
                name = f"{package[1]}.{renamed[1] if renamed else module}"
                assert importlib.util.find_spec(name), name
