"""Figures of the report about single characters, scores and answers."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmrole.data.prompts import METRICS
from mmrole.scoring.measures import OVERALL, POOLED
from mmrole.scoring.report import ModelReport, Report
from mmrole.scoring.reviews import ModelReviews
from mmrole.scoring.tables import printable

GREY = "#888888"
_BINS = {"0–4": (0, 5), "5–6": (5, 7), "7": (7, 8), "8": (8, 9), "9": (9, 10), "10": (10, 11)}
"""The scores from … to (exclusive) by label."""
_BLOCK_ROWS = 26
_LENGTHS = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64, 256)


def draw_characters(report: Report, samples: Mapping[str, ModelReviews]) -> Figure:
    """A heat map of the overall means: characters by series, in blocks side by side, and models."""
    blocks = _character_blocks(samples)
    n_blocks = len(blocks)
    n_models = len(report.models)
    height = 0.9 + 0.2 * max(map(len, blocks)) + 0.08 * max(len(model.model) for model in report.models)
    figure = Figure(figsize=(n_blocks * (1.9 + 0.45 * n_models) + 0.6, height), layout="constrained")
    panels = figure.subplots(1, n_blocks, squeeze=False)[0]
    norm, images = TwoSlopeNorm(1, 0.4, 1.6), []
    for axes, block in zip(panels, blocks, strict=True):
        values = np.array([[_character_mean(model, name) for model in report.models] for _, name in block])
        images.append(axes.imshow(np.ma.masked_invalid(values), cmap="PuOr", norm=norm, aspect="auto"))
        for row, place in zip(*np.nonzero(~np.isnan(values)), strict=True):
            value = values[row, place]
            shade = "white" if abs(value - 1) > 0.4 else "black"
            axes.text(place, row, f"{value:.2f}", ha="center", va="center", size=6.5, color=shade)
        axes.set_xticks(range(n_models), [short_name(model.model) for model in report.models], rotation=90)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(block)), [short_name(name or series) for series, name in block], size=7.5)
        for label, (_, name) in zip(axes.get_yticklabels(), block, strict=True):
            if not name:
                label.set(weight="bold", color="#333333")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    colours = figure.colorbar(images[-1], ax=panels, location="bottom", shrink=0.5, aspect=40, extend="both", pad=0.01)
    colours.set_label(f"{OVERALL} score (answer / reference); white: as good as the reference")
    return figure


def draw_distributions(report: Report) -> Figure:
    """How often each score is given under each metric, to the answers and, in the thin bar, to the references."""
    n_models = len(report.models)
    figure = Figure(figsize=(11, 1.3 + 2 * (0.5 + 0.34 * n_models)), layout="constrained")
    panels = figure.subplots(2, len(METRICS) // 2, sharex=True, sharey=True)
    colours = colormaps["cividis"](np.linspace(0, 1, len(_BINS)))
    for number, (axes, metric) in enumerate(zip(panels.flat, METRICS, strict=True)):
        counts = np.stack([model.histogram[number] for model in report.models])
        for side, (shift, thickness) in enumerate(((-0.12, 0.46), (0.27, 0.2))):
            _stack(axes, counts[:, :, side], np.arange(n_models) + shift, thickness, colours)
        axes.set(title=metric, xlim=(0, 100))
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
    panels[0, 0].set_yticks(range(n_models), [short_name(model.model) for model in report.models])
    panels[0, 0].set_ylim(n_models - 0.5, -0.5)
    for axes in panels[-1]:
        axes.set_xlabel("% of the reviews")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    title = "score (thick bars: the answers, thin bars: the references)"
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=len(_BINS), frameon=False, title=title)
    return figure


def draw_length(report: Report, samples: Mapping[str, ModelReviews]) -> Figure:
    """Score against answer length, one panel a model, with the line that gives the length-controlled score."""
    columns = min(4, len(report.models))
    n_rows = -(-len(report.models) // columns)
    figure = Figure(figsize=(0.8 + 2.7 * columns, 0.5 + 2.5 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, model in zip(panels.flat, report.models, strict=False):
        _length_panel(axes, model, samples[model.model])
    for axes in panels.flat[len(report.models) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{OVERALL} score")
    figure.supxlabel("length of the answer / length of the reference, in characters", size=9)
    return figure


def _character_blocks(samples: Mapping[str, ModelReviews]) -> list[list[tuple[str, str]]]:
    """(series, character) in alphabetical order, in blocks of one length; a row without a character opens a series."""
    pairs = {
        pair
        for model in samples.values()
        for pair in zip(model.columns["series"], model.columns["character"], strict=True)
    }
    ordered = sorted(pairs)
    n_blocks = max(1, round(len(pairs) / _BLOCK_ROWS))
    blocks = []
    for part in np.array_split(np.arange(len(pairs)), n_blocks):
        own = [ordered[place] for place in part]
        blocks.append(sorted({(series, "") for series, _ in own} | set(own)))
    height = max(map(len, blocks))
    return [block + [("", "")] * (height - len(block)) for block in blocks]


def _character_mean(model: ModelReport, name: str) -> float:
    scores = model.groups["character"].get(name)
    return scores[OVERALL].value if scores else np.nan


def _stack(axes: Axes, counts: np.ndarray, heights: np.ndarray, thickness: float, colours: np.ndarray) -> None:
    """Bars of shares by `_BINS`, one for each row of counts, int [models, 11]."""
    left = np.zeros(len(counts))
    for (label, (low, high)), colour in zip(_BINS.items(), colours, strict=True):
        shares = 100 * counts[:, low:high].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
        axes.barh(heights, shares, thickness, left, color=colour, label=label)
        left += shares


def _length_panel(axes: Axes, model: ModelReport, samples: ModelReviews) -> None:
    scored = samples.complete & (samples.length_ratios > 0)
    ratios, scores = samples.length_ratios[scored], samples.overall[scored]
    axes.scatter(ratios, scores, s=9, color="#0072B2", alpha=0.4, linewidths=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_LENGTHS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}"))
    axes.tick_params(axis="x", labelsize=7.5)
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0.9)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0.9)
    length = model.length.get(POOLED) or next(iter(model.length.values()))
    logarithms = np.log(ratios)
    if len(ratios) > 2 and logarithms.std() > 0 and not np.isnan(length.score.value):
        x = np.tanh(logarithms / logarithms.std())
        slope = np.polyfit(x, scores, 1)[0]
        grid = np.linspace(logarithms.min(), logarithms.max(), 100)
        line = length.score.value + slope * np.tanh(grid / logarithms.std())
        axes.plot(np.exp(grid), line, color="#D55E00", linewidth=1.4)
        axes.plot(1, length.score.value, "D", color="#D55E00", markerfacecolor="white", markersize=5)
    mean = scores.mean() if len(scores) else np.nan
    note = f"mean {mean:.3f}\nlength-controlled {length.score.value:.3f}\nSpearman {length.spearman.value:.2f}"
    axes.annotate(note, (0.03, 0.97), xycoords="axes fraction", va="top", size=7.5, linespacing=1.3)
    axes.set_title(short_name(model.model))


def short_name(name: str) -> str:
    """A name as a label: `$` is no mathematics there, `_` at the front does not hide it, and long names are cut.

    Characters that cannot be printed are replaced: an SVG cannot hold them.
    """
    name = printable(name)
    name = name if len(name) <= 32 else name[:31] + "…"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
