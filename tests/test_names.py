"""One word for one thing: no two public classes or functions of the library have the same name."""

import ast
from pathlib import Path

PACKAGES = ("mmrole", "data_utils")
SHARED = {
    "main": "what a command runs, in each module that is one",
    "parse_arguments": "the flags of a command, beside its `main`",
    "run": "of scripts and of jobs",
}
"""The names that several have, and what all of these are."""


def public_names(module: Path) -> set[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(module.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")}


def test_names_are_of_one_thing(repository):
    places: dict[str, list[str]] = {}
    for module in sorted(path for package in PACKAGES for path in repository.glob(f"{package}/**/*.py")):
        for name in public_names(module):
            places.setdefault(name, []).append(str(module.relative_to(repository)))
    shared = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {name: modules for name, modules in shared.items() if name not in SHARED} == {}
    assert sorted(SHARED.keys() - shared.keys()) == [], "of one thing now"
