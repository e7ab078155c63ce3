"""Provenance of reviews: scores that the same judge gave under different settings may not be comparable."""

from collections.abc import Iterable

from mmrole.base.errors import shown
from mmrole.base.files import read_json
from mmrole.jobs.outputs import NOTED
from mmrole.scoring.judges import IDENTITY
from mmrole.scoring.reviews import ReviewFile

_OF_THE_INPUT = ("input", "images", "failed")
_UNTOLD = {"pixels": "not noted"}  # as reviews have it that were made before it was noted


def describe_differences(files: Iterable[ReviewFile]) -> list[str]:
    """One line for each setting in which files of reviews differ: its values, each with the models that have it.

    That they are by one judge is for `mmrole.scoring.judges.find_judge` to say.

    Settings are those of `<file>.settings`, which `eval/RM_review.py` writes beside its output. Reviews from elsewhere,
    the published ones among them, have none and are passed over.

    Raises:
        UserError: settings cannot be read.
    """
    models: dict[str, dict[str, dict[str, None]]] = {}
    for file in files:
        path = file.path.with_name(f"{file.path.name}.settings")
        settings = _UNTOLD | read_json(path, dict) if path.exists() else {}
        told = settings.pop(NOTED, {})  # by a server
        settings |= {name: told[name] for name in ("left_out", "not_honoured") if name in told}
        if told and "model" in settings:  # servers report one id for whatever they are asked for
            settings["api_model"] = settings["model"]
        for name, value in settings.items():
            if name not in (*_OF_THE_INPUT, *IDENTITY):
                models.setdefault(name, {}).setdefault(shown(value), {})[file.model] = None
    return [
        f"the reviews differ in {name}, and their scores may not be comparable: "
        + "; ".join(f"{value} ({', '.join(map(shown, own))})" for value, own in by_value.items())
        for name, by_value in models.items()
        if len(by_value) > 1
    ]
