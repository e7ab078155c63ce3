"""The packages: they import no script, and a wheel holds those that are of use without the repository."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_namespace_packages

PACKAGES = ("mmrole", "data_utils")
SCRIPTS = ("*.py", "eval/*.py", "finetune/*.py", "scripts/*.py")


def imported(source: Path) -> Iterator[str]:
    """The absolute names of the modules that are imported anywhere in a file, in functions too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_no_package_imports_a_script(repository):
    scripts = {path.stem for pattern in SCRIPTS for path in repository.glob(pattern)}
    assert {"inference", "report", "finetune", "merge_lora"} <= scripts
    scripts |= {Path(pattern).parent.name for pattern in SCRIPTS} - {""}
    modules = [path for package in PACKAGES for path in repository.glob(f"{package}/**/*.py")]
    found = [(path, name) for path in modules for name in imported(path) if name.split(".")[0] in scripts]
    assert found == []


def test_a_wheel_holds_the_library_without_the_demo(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    found = set(find_namespace_packages(str(repository), **project["tool"]["setuptools"]["packages"]["find"]))
    folders = {path.parent.relative_to(repository) for path in repository.glob("*/**/__init__.py")}
    packages = {".".join(folder.parts) for folder in folders if folder.parts[0] in PACKAGES}
    assert found == packages - {"mmrole.demo"}
    assert "mmrole.demo" in packages
