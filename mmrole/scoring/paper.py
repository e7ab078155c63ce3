"""The rows of the paper's Table 5 (arXiv 2408.04203), to be shown beside one's own.

Rows of both test sets are, to the printed digit in 92 of 99 cells, `measures.WEIGHTED` means. They come from reviews by
the published reward model; what another one says cannot be compared with them.
"""

from mmrole.data.prompts import METRICS
from mmrole.scoring.measures import OVERALL, WEIGHTED
from mmrole.scoring.report import PaperRow
from mmrole.scoring.reviews import IN_TEST, OUT_TEST

_ROWS = (
    ("GPT-4 Turbo", WEIGHTED, (1.055, 1.032, 1.084, 1.097, 1.092, 1.168, 1.103, 1.161, 1.099)),
    ("Gemini Pro Vision", WEIGHTED, (0.999, 1.007, 1.028, 1.009, 1.013, 1.052, 1.013, 1.05, 1.021)),
    ("Claude 3 Opus", WEIGHTED, (1.127, 1.07, 1.149, 1.167, 1.146, 1.219, 1.168, 1.213, 1.157)),
    ("QWen-VL-Max", WEIGHTED, (1.014, 1.012, 1.035, 1.034, 1.029, 1.042, 1.021, 1.041, 1.028)),
    ("LLaVA-NeXT-34B", WEIGHTED, (1.002, 1.007, 1.021, 1.033, 1.035, 1.053, 1.03, 1.038, 1.027)),
    ("Yi-VL-34B", WEIGHTED, (0.895, 0.968, 0.91, 0.875, 0.863, 0.844, 0.869, 0.845, 0.884)),
    ("InternVL-Chat-V1.5", WEIGHTED, (0.988, 0.996, 0.997, 0.977, 0.984, 0.967, 0.972, 0.96, 0.98)),
    ("QWen-VL-Chat", WEIGHTED, (0.844, 0.954, 0.879, 0.85, 0.829, 0.778, 0.827, 0.785, 0.843)),
    ("LLaVA-NeXT-Mistral-7B", WEIGHTED, (0.948, 0.986, 0.964, 0.938, 0.933, 0.924, 0.94, 0.921, 0.944)),
    ("Yi-VL-6B", WEIGHTED, (0.844, 0.919, 0.859, 0.828, 0.811, 0.776, 0.82, 0.774, 0.829)),
    ("MMRole-Agent", WEIGHTED, (0.998, 1.0, 0.997, 0.993, 0.987, 1.0, 0.992, 0.988, 0.994)),
    ("MMRole-Agent", IN_TEST, (1.0, 1.0, 0.999, 0.997, 0.989, 1.012, 0.997, 0.997, 0.999)),
    ("MMRole-Agent", OUT_TEST, (0.992, 0.999, 0.993, 0.979, 0.981, 0.963, 0.977, 0.962, 0.981)),
)
"""Model, test sets, and the means under the eight metrics and overall."""

PAPER_ROWS = tuple(
    PaperRow(model, split, dict(zip((*METRICS, OVERALL), numbers, strict=True))) for model, split, numbers in _ROWS
)
"""All rows, in the order of the table."""
