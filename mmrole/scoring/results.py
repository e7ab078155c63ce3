"""Tables of results in the published form: the mean ratio of each metric over the samples of one file."""

from typing import NamedTuple

import numpy as np

from mmrole.data.prompts import METRICS
from mmrole.scoring.coverage import describe_gaps
from mmrole.scoring.reviews import ModelReviews, ReviewFile, is_unanswered


class Result(NamedTuple):
    """The result of one file of reviews."""

    n: int
    """Samples with all eight pairs."""
    n_empty: int
    """Empty answers, which get no review."""
    n_unanswered: int
    """Samples whose answer was refused or has failed, which get none, either."""
    means: tuple[float, ...]
    """Of answer over reference, by metric in published order; empty if n is 0."""
    gaps: list[str]
    """What keeps the means from covering all answers, and nothing else; one line a kind."""

    def csv(self) -> str:
        """The published table: a header and one row, each ended by CR LF, numbers as `repr` writes them."""
        return f"count,{','.join(METRICS)}\r\n{self.n},{','.join(map(repr, self.means))}\r\n"


def compute_result(file: ReviewFile) -> Result:
    """The result of one file, over its samples with all eight pairs.

    A sample's ratio is the evaluated answer's score over the reference's (paper, section 4); in a file with swapped
    reviews, which are not the paper's, the mean of both orders. Sums are taken from left to right in double precision,
    as the published tables were computed, so that they are reproduced to the last digit.
    """
    model = ModelReviews(file.model, (file,))
    ratios = model.ratios[model.complete]
    # cumsum adds one after the other; sum() of NumPy, and of Python from 3.12 on, round less.
    means = np.cumsum(ratios, axis=0)[-1] / len(ratios) if len(ratios) else np.empty(0)
    unanswered = sum(map(is_unanswered, file.records))
    return Result(len(ratios), int(model.empty.sum()), unanswered, tuple(means.tolist()), describe_gaps(file))
