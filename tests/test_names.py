"""One word for one thing: no two public classes, functions or types of the library have the same name, and modules that
do are listed with what they have in common."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = {
    "main": "what a command runs, in each module that is one",
    "parse_arguments": "the flags of a command, beside its `main`",
    "run": "of scripts and of jobs",
    "T": "any type, of one function",
    "check": "raises where a checkpoint of a kind, or a saved state, is not sound",
    "read_config": "of a checkpoint of a kind",
    "read_family": "of a checkpoint of any kind, of each kind",
    "tree_model": "of each kind",
}
"""The names that several have, and what all of these are."""

CHECKS = "what is checked of it, in data_utils/checks"
SHARED_BY_MODULES = {
    "adapters": "LoRA: in checkpoints, put into a model that is trained",
    "arguments": "flags",
    "attention": "of trees, of Qwen-VL",
    "characters": CHECKS,
    "dialogues": CHECKS,
    "encoding": "messages to tokens: of any chat, of a training sample",
    "engine": "and the backend that it is",
    "errors": "of anything, of a checkpoint of Qwen-VL",
    "figures": "drawn with matplotlib: of results, of the data set",
    "images": "of a data set, of running requests",
    "loading": "reads what is on the disk: a checkpoint, a folder to check",
    "options": "typed flags: of a backend, of a job, of the server",
    "pictures": CHECKS,
    "report": "what is told in the end: of scores, of a check",
    "reviews": CHECKS,
    "samples": CHECKS,
    "statistics": "numbers about many: scores, the data set",
    "tables": "of anything, of scores",
}
"""The names that several modules have, and what all of these are."""


@pytest.fixture(scope="module")
def modules(repository: Path) -> list[Path]:
    found = [path for package in ("mmrole", "data_utils") for path in sorted(repository.glob(f"{package}/**/*.py"))]
    return [path for path in found if path.name != "__init__.py"]


def public_names(module: Path) -> Iterator[str]:
    """Of classes, functions, and types that have got a name: aliases and type variables."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names = [name for name in names if name == "T" or (name[0].isupper() and not name.isupper())]
        yield from (name for name in names if not name.startswith("_"))


def several(names: dict[Path, set[str]]) -> dict[str, list[Path]]:
    """The names of more than one module, with these."""
    places: dict[str, list[Path]] = {}
    for module, own in names.items():
        for name in own:
            places.setdefault(name, []).append(module)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_names_are_of_one_thing(modules):
    shared = several({module: set(public_names(module)) for module in modules})
    assert {name: found for name, found in shared.items() if name not in SHARED} == {}
    assert sorted(SHARED.keys() - shared.keys()) == [], "of one thing now"


def test_modules_of_a_name_have_it_for_one_reason(modules):
    shared = several({module: {module.stem} for module in modules})
    assert {name: found for name, found in shared.items() if name not in SHARED_BY_MODULES} == {}
    assert sorted(SHARED_BY_MODULES.keys() - shared.keys()) == [], "of one module now"
