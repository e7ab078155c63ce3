"""Who judged: reviews by another judge than the published reward model lie in a folder `…_reviews@JUDGE`.

Scores by two judges are not comparable: nothing averages, ranks or learns from the reviews of both.
"""

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mmrole.base.errors import UserError, listed
from mmrole.base.files import read_json
from mmrole.data.images import OTHER_BACKEND
from mmrole.jobs.outputs import NOTED

PUBLISHED = "the published reward model"

IDENTITY = ("model", "adapter")
"""What of `<file>.settings` tells judges apart that are checkpoints; the rest is how a judge was used."""

_FOLDER = re.compile(r"(.*?_(?:reviews|results))(?:@(.+))?", re.DOTALL)


class JudgeFolder(NamedTuple):
    """A folder of reviews, or of their results, in the path of a file.

    Attributes:
        place: which part of the path it is.
        name: what it is called without the judge, such as `in-test_reviews`.
        judge: the judge that it names; None in a folder of the published reward model.
    """

    place: int
    name: str
    judge: str | None


class Judge(NamedTuple):
    """The one judge of some reviews, as far as their folder and settings tell.

    Attributes:
        name: what pages, tables and messages call it.
        is_published: whether it counts as the published reward model: neither folder nor settings know better.
    """

    name: str
    is_published: bool


def judge_folder(path: str | os.PathLike) -> JudgeFolder | None:
    """The nearest folder of reviews or results: the folder itself, or one above it; None if there is none."""
    for place, part in reversed(list(enumerate(Path(path).parts))):
        if match := _FOLDER.fullmatch(part):
            return JudgeFolder(place, match[1], match[2])
    return None


def judge_name(text: str) -> str:
    """The `type` of an argument that is a judge's name: it can stand in `…_reviews@NAME`."""
    if not text.strip() or not text.isprintable() or {"/", "\\"} & set(text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be part of a folder's name; give one without / and \\")
    return text


def judge_of_folders(paths: Iterable[Path]) -> str | None:
    """The judge that the folders of some files of reviews name; None where they name none.

    Raises:
        UserError: they do not name the same one.
    """
    named: dict[str | None, Path] = {}
    for path in paths:
        folder = judge_folder(Path(os.path.abspath(path)).parent)
        named.setdefault(folder and folder.judge, path)
    if len(named) > 1:
        raise _several({name or PUBLISHED: path for name, path in named.items()})
    return next(iter(named), None)


def find_judge(paths: Iterable[Path]) -> Judge:
    """The judge of some files of reviews.

    It is the one that the folder names. In a folder that names none it counts as the published reward model, even
    where the settings beside a file have the hash of a Qwen-VL: that of the published one is not known. Another model,
    here or behind a server, does not.

    Raises:
        UserError: the files have more than one judge, or their settings cannot be read.
    """
    paths = list(paths)
    folder = judge_of_folders(paths)
    known: dict[Judge, Path] = {}
    untold: list[Path] = []
    for path in paths:
        judge = _judge_in_settings(path)
        if judge is None:
            untold.append(path)
        else:
            known.setdefault(judge, path)
    named = {judge.name: path for judge, path in known.items()}
    if len(known) > 1:
        raise _several(named)
    if folder is not None or not known:
        return Judge(listed([folder or PUBLISHED], 1), folder is None)
    (judge,) = known
    if not untold:
        return judge
    if not judge.is_published:
        raise _several({PUBLISHED: untold[0], **named})
    return judge._replace(name=f"{judge.name}, taken for {PUBLISHED}")


def can_be_published(settings: Mapping[str, object]) -> bool:
    """Whether what has these settings (a backend's fingerprint) may be the published reward model, a Qwen-VL."""
    return "api_image_pixels" not in settings and not str(settings.get("pixels")).endswith(OTHER_BACKEND)


def _judge_in_settings(path: Path) -> Judge | None:
    """The judge that the settings beside a file of reviews know; None beside files from elsewhere."""
    file = path.with_name(f"{path.name}.settings")
    settings = read_json(file, dict) if file.exists() else {}
    told = settings.get(NOTED)
    if isinstance(told, dict):  # a server, which has said which model replied
        return Judge(listed([str(told.get("reported_model") or settings.get("model"))], 1), False)
    identity = [str(settings[key]) for key in IDENTITY if key in settings]
    if not identity or "api_image_pixels" in settings:
        return None
    return Judge(listed([f"the model {' with the adapter '.join(identity)}"], 1), can_be_published(settings))


def _several(judges: Mapping[str, Path]) -> UserError:
    found = listed([f"{name} ({path})" for name, path in judges.items()], 4)
    return UserError(
        f"reviews by different judges are not comparable: {found}; give those of one judge, and keep those of another "
        "one in a folder …_reviews@JUDGE"
    )
