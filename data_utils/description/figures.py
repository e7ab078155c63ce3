"""Figures of a data set, for papers and slides: PNG and SVG, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data_utils.description.statistics import SPLITS, DialogueGroups, Group, has_tokens, has_trees
from mmrole.base.figure_style import FIGURE_STYLE, save_figure
from mmrole.base.tables import Table
from mmrole.data.dialogues import TYPES

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS: dict[str, str] = dict(zip(TYPES, ("#E69F00", "#0072B2", "#009E73"), strict=True))
_PALE = "#BBBBBB"


def draw_data_figures(output_dir: Path, groups: DialogueGroups, characters: Table, max_len: int) -> list[Path]:
    """Draws `composition`, `lengths` and, if tokens of training samples were counted, `trees`.

    Args:
        output_dir: where to write them.
        groups: measured dialogues and samples, at least one.
        characters: `statistics.character_table`.
        max_len: the length that samples are padded to, in tokens.

    Returns:
        The files written.
    """
    with matplotlib.rc_context(FIGURE_STYLE):
        written = save_figure(output_dir / "composition", _composition(groups, characters))
        written += save_figure(output_dir / "lengths", _lengths(groups, max_len))
        if has_trees(groups):
            written += save_figure(output_dir / "trees", _trees(groups, max_len))
    return written


def _composition(groups: DialogueGroups, characters: Table) -> Figure:
    figure, (left, middle, right) = _panels(3)
    rows = characters.rows[:-1]  # without the total
    names = [str(row[0]).replace("and public", "and\npublic") for row in rows]
    inside, outside = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    left.bar(names, inside, color="#56B4E9", label="in distribution")
    if outside.any():
        left.bar(names, outside, bottom=inside, color=_PALE, label="out of distribution")
        left.legend(frameon=False)
    for place, number in enumerate(inside + outside):
        left.annotate(f"{number}", (place, number), (0, 2), textcoords="offset points", ha="center")
    left.set(title="Characters", ylabel="characters")

    dialogues = {kind: sum(len(groups[name, kind].turns) for name in SPLITS) for kind in TYPES}
    _labelled_bars(middle, dialogues)
    middle.set(title="Dialogues", ylabel="dialogues")
    trained = {kind: len(groups[SPLITS[0], kind].samples) for kind in TYPES}
    _labelled_bars(right, trained)
    tested = ", ".join(
        f"{sum(len(groups[name, kind].samples) for kind in TYPES):,} {name}"
        for name in SPLITS[1:]
        if any(groups[name, kind].samples for kind in TYPES)
    )
    right.set(title="Training samples", ylabel="samples", xlabel=f"besides {tested} samples" if tested else "")
    for axes in (left, middle, right):
        axes.margins(y=0.12)
    return figure


def _lengths(groups: DialogueGroups, max_len: int) -> Figure:
    figure, (left, middle, right) = _panels(3)
    everything = {kind: Group() for kind in TYPES}
    for (_, kind), group in groups.items():
        everything[kind] += group
    everything = {kind: group for kind, group in everything.items() if group.samples}

    talks = {kind: group for kind, group in everything.items() if kind != "comment"}  # always two turns
    width = 0.8 / max(len(talks), 1)
    for place, (kind, group) in enumerate(talks.items()):
        shares = np.bincount(group.turns) * 100 / len(group.turns)
        shift = (place - (len(talks) - 1) / 2) * width
        left.bar(np.arange(shares.size) + shift, shares, width, color=_COLOURS[kind])
    longest = max((max(group.turns) for group in talks.values()), default=2)
    left.set(title="Turns of a dialogue", xlabel="utterances (a comment has 2)", ylabel="% of dialogues")
    left.set(xlim=(1, longest + 1))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    tokens = has_tokens(groups)
    unit = "tokens" if tokens else "characters"
    lengths = {
        kind: [sample.tokens if tokens else sample.prompt_characters for sample in group.samples]
        for kind, group in everything.items()
    }
    _densities(middle, lengths)
    middle.set(title="Length of a sample" if tokens else "Length of a prompt", xlabel=unit)
    if tokens:
        middle.set(xlim=(0, max(middle.get_xlim()[1], 1.05 * max_len)))
        middle.axvline(max_len, color="black", linewidth=0.8, linestyle="--")
        middle.annotate(
            f"{max_len:,}", (max_len, 0.95), (-3, 0), ("data", "axes fraction"), "offset points", ha="right"
        )
    replies = {
        kind: [sample.reply_tokens if tokens else sample.reply_characters for sample in group.samples]
        for kind, group in everything.items()
    }
    _densities(right, replies)
    right.set(title="Length of a reply", xlabel=unit)
    right.legend(frameon=False)
    return figure


def _trees(groups: DialogueGroups, max_len: int) -> Figure:
    figure, (axes,) = _panels(1, width=6.5, height=2.6)
    kinds = [kind for kind in TYPES if groups[SPLITS[0], kind].samples]
    places = np.arange(len(kinds))[::-1].astype(float)
    trained = [groups[SPLITS[0], kind] for kind in kinds]
    series = {
        f"padded to {max_len:,}": [len(group.samples) * max_len for group in trained],
        "one by one": [group.tokens for group in trained],
        "as prompt trees": [group.tree_positions for group in trained],
    }
    for row, (name, sizes) in enumerate(series.items()):
        colours = [_PALE if row == 0 else _COLOURS[kind] for kind in kinds]
        heights = places + (1 - row) * 0.27
        bars = axes.barh(heights, sizes, 0.23, color=colours, label=name)
        for bar, colour, size, group in zip(bars, colours, sizes, trained, strict=True):
            bar.set(alpha=0.5 if row == 1 else 1.0, edgecolor=colour)
            note = f"{_short(size)} {name}" + (f" (÷ {group.tokens / size:.1f})" if row == 2 else "")
            axes.annotate(
                note, (size, bar.get_y() + bar.get_height() / 2), (4, 0), ("data"), "offset points", va="center"
            )
    axes.set_yticks(places, kinds)
    axes.set(title="Positions to compute for the training samples", xlim=(0, 1.45 * max(map(max, series.values()))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
    return figure


def _labelled_bars(axes: Axes, numbers: dict[str, int]) -> None:
    axes.bar(list(numbers), list(numbers.values()), color=[_COLOURS[kind] for kind in numbers])
    for place, number in enumerate(numbers.values()):
        axes.annotate(f"{number:,}", (place, number), (0, 2), textcoords="offset points", ha="center")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))


def _densities(axes: Axes, lengths: Mapping[str, Sequence[int]]) -> None:
    """Histograms as outlines over a common range; the longest half per cent is left out."""
    top = max(np.percentile(values, 99.5) for values in lengths.values())
    bins = np.linspace(0, max(top, 1), 61)
    for kind, values in lengths.items():
        shares = np.histogram(values, bins)[0] * 100 / len(values)
        axes.stairs(shares, bins, color=_COLOURS[kind], linewidth=1.2, label=kind)
        axes.stairs(shares, bins, color=_COLOURS[kind], alpha=0.15, fill=True)
    axes.set(ylabel="% of samples", xlim=(0, bins[-1]), ylim=(0, None))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))


def _panels(number: int, width: float = 11, height: float = 3) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _short(number: float) -> str:
    """A large number in three digits: 34.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
