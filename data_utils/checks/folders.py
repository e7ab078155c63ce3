"""Checks of whole folders: whether all files are there that a model's answers or reviews consist of."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_utils.checks.checker import Checker
from data_utils.checks.forms import SAMPLES, Form
from data_utils.checks.problems import Place, Problem
from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION

_DISTRIBUTIONS = {"in": IN_DISTRIBUTION, "out": OUT_OF_DISTRIBUTION}


def missing_files(forms: Mapping[Path, Form | None], checker: Checker) -> Iterator[Problem]:
    """Test files that a folder `eval/{in,out}-test_{answers,reviews}/<model>` has nothing of.

    Args:
        forms: what the files of the folders are, by path.
        checker: knows the test files around them.
    """
    folders = {path.parent: (path, form) for path, form in forms.items() if form and form in SAMPLES[1:]}
    for folder, (path, form) in folders.items():
        distribution = _DISTRIBUTIONS.get(folder.absolute().parent.name.partition("-test_")[0])
        for test, samples in checker.source(path, form).around.test_files.items():
            if test.parent.name == distribution and not (folder / test.name).exists():
                text = f"there is no {test.name} for the {len(samples)} samples of {test}"
                yield Problem("missing_samples", Place(str(folder)), text)
