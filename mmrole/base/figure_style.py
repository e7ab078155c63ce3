"""Matplotlib settings of all figures, and how they are written."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrole.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

FIGURE_STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 200,
    "svg.hashsalt": "mmrole",  # the same data give the same file
}


def save_figure(path: Path, figure: "Figure") -> list[Path]:
    """Writes `path`.png and `path`.svg, without the time of day, so that equal figures are equal files.

    Returns:
        Both files.
    """
    metadata: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}}
    written = []
    for suffix, data in metadata.items():
        with replacing(path.with_suffix(suffix)) as file:
            figure.savefig(file, format=suffix[1:], metadata=data)
        written.append(path.with_suffix(suffix))
        figure.set_layout_engine("none")  # laid out once
    return written
