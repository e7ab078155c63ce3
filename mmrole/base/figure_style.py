"""Matplotlib settings of all figures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
