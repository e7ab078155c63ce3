"""Figures of the report's means, for papers and slides: PNG and SVG, drawn without a display."""

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmrole.base.figure_style import FIGURE_STYLE, save_figure
from mmrole.data.prompts import DIMENSIONS, METRICS
from mmrole.scoring.figures_samples import GREY, draw_characters, draw_distributions, draw_length, short_name
from mmrole.scoring.measures import OVERALL, WEIGHTED
from mmrole.scoring.report import Report
from mmrole.scoring.reviews import SPLITS, ModelReviews
from mmrole.scoring.statistics import Estimate
from mmrole.scoring.tables import MANY

if TYPE_CHECKING:
    from matplotlib.projections.polar import PolarAxes
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colours, which people with any colour vision tell apart; yellow is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_IN_RADAR = len(_COLOURS)
_CHINESE_FONTS = ("NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "NotoSansSC-Regular", "SourceHanSansSC-Regular")
_CHINESE_FONTS += ("wqy-zenhei", "wqy-microhei", "msyh", "PingFang", "simhei")


def draw_figures(folder: Path, report: Report, models: Sequence[ModelReviews]) -> list[Path]:
    """Draws the figures of a report, each as PNG and SVG.

    `overall`, `dimensions` (bars), `radar` (metrics), `types`, `characters` (heat map), `distributions`, `length`, and
    `position` where answers were reviewed in both orders. Of more than `tables.MANY` models the best are shown. For
    Chinese names one of a few common fonts is taken; where
    there is none, a PNG has boxes for them, and an SVG is shown with the fonts of its reader.

    Args:
        folder: where to write them.
        report: the numbers.
        models: the reviews behind them.

    Returns:
        The files written.
    """
    samples = {model.model: model for model in models}
    shown = dataclasses.replace(report, models=report.models[:MANY])
    with matplotlib.rc_context(FIGURE_STYLE | _fonts()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # without a Chinese font
        figures = {
            "overall": _overall(shown),
            "dimensions": _dimensions(shown),
            "radar": _radar(report),
            "types": _types(shown),
            "characters": draw_characters(shown, samples),
            "distributions": draw_distributions(shown),
            "length": draw_length(shown, samples),
        }
        if any(model.position for model in shown.models):
            figures["position"] = _position(shown)
        if len(shown.models) < len(report.models):
            for figure in (own for name, own in figures.items() if name != "radar"):
                figure.suptitle(f"The best {len(shown.models)} of {len(report.models)} models", size=9)
        return [path for name, figure in figures.items() for path in save_figure(folder / name, figure)]


def _overall(report: Report) -> Figure:
    """Overall means, raw and length-controlled, one panel for each mean or split, with the paper's rows of the same."""
    keys = [key for key in (WEIGHTED, *SPLITS) if any(key in model.scores for model in report.models)]
    papers = list(dict.fromkeys(row.model for row in report.paper if row.split in keys))
    names = [model.model for model in report.models]
    n_rows = len(names) + len(papers)
    figure = Figure(figsize=(3 + 3.4 * len(keys), 1.3 + 0.32 * n_rows), layout="constrained")
    panels = figure.subplots(1, len(keys), sharex=True, sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        for row, model in enumerate(report.models):
            if key in model.scores:
                _point(axes, model.scores[key][OVERALL], row - 0.12, _COLOURS[0], "o", "mean")
                controlled = model.length[key].score
                _point(axes, controlled, row + 0.18, _COLOURS[1], "D", "length-controlled", hollow=True)
        for row in report.paper:
            if row.split == key:
                place = len(names) + papers.index(row.model)
                axes.plot(row.scores[OVERALL], place, "s", color=GREY, markersize=5, label="paper (Table 5)")
        _reference_line(axes)
        axes.set(
            title=key if key in SPLITS else f"{key} of {SPLITS[0]} / {SPLITS[1]}", xlabel="score (answer / reference)"
        )
        axes.grid(axis="x", color="#E5E5E5")
    panels[0].set_yticks(range(n_rows), [short_name(name) for name in names] + [f"{name} (paper)" for name in papers])
    panels[0].set_ylim(n_rows - 0.5, -0.5)
    _legend_below(figure, panels)
    return figure


def _dimensions(report: Report) -> Figure:
    """Bars of the overall and the three dimensions, with intervals."""
    columns = (OVERALL, *DIMENSIONS)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(report.models)
    for place, model in enumerate(report.models):
        scores = _ranked(report, place)
        means = np.array([scores[name].value for name in columns])
        ends = np.array([[scores[name].low, scores[name].high] for name in columns]).T
        errors = np.nan_to_num(np.abs(ends - means))
        x = np.arange(len(columns)) + (place - (len(report.models) - 1) / 2) * width
        colour, hatch = _COLOURS[place % len(_COLOURS)], ("", "//", "..")[place // len(_COLOURS) % 3]
        axes.bar(x, means, width * 0.92, color=colour, hatch=hatch, edgecolor="white", label=short_name(model.model))
        axes.errorbar(x, means, errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        if len(report.models) <= 5:
            for left, mean, error in zip(x, means, errors[1], strict=True):
                axes.annotate(
                    f"{mean:.2f}", (left, mean + error), (0, 2), textcoords="offset points", ha="center", size=7
                )
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0.9)
    axes.set_xticks(range(len(columns)), [name.replace(" ", "\n", 1) for name in columns])
    axes.set(title=_title(report, "Overall and by dimension"), ylabel="score (answer / reference)")
    axes.margins(y=0.1)
    _legend_below(figure, [axes])
    return figure


def _radar(report: Report) -> Figure:
    """The eight metrics of the best models, from a common inner value."""
    shown = report.models[:_IN_RADAR]
    values = np.array([[_ranked(report, place)[name].value for name in METRICS] for place in range(len(shown))])
    angles = np.linspace(0, 2 * np.pi, len(METRICS), endpoint=False)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = cast("PolarAxes", figure.subplots(subplot_kw={"projection": "polar"}))
    axes.set(theta_offset=np.pi / 2, theta_direction=-1)
    for place, model in enumerate(shown):
        closed = np.append(values[place], values[place][0])
        style = {"color": _COLOURS[place], "marker": _MARKERS[place], "markersize": 4, "linewidth": 1.4}
        axes.plot(np.append(angles, angles[0]), closed, label=short_name(model.model), **style)
        axes.fill(angles, values[place], color=_COLOURS[place], alpha=0.06)
    low = np.floor(np.nanmin(np.append(values, 0.95)) * 10 - 0.5) / 10
    high = np.ceil(np.nanmax(np.append(values, 1.05)) * 10) / 10
    axes.plot(np.linspace(0, 2 * np.pi, 200), np.ones(200), color=GREY, linewidth=1, linestyle="--", label="reference")
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in MaxNLocator(5).tick_values(low, high) if low < tick <= high])
    axes.tick_params(axis="y", labelsize=7, labelcolor="#555555")
    axes.set_rlabel_position(180 / len(METRICS))
    axes.set_xticks(angles, [name.replace(" ", "\n", 1) for name in METRICS])
    axes.tick_params(axis="x", pad=4)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side = round(np.sin(angle), 6)
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.grid(color="#DDDDDD")
    axes.spines["polar"].set_color("#DDDDDD")
    best = f" (best {len(shown)} of {len(report.models)} models)" if len(report.models) > len(shown) else ""
    axes.set_title(_title(report, f"By metric{best}"), pad=18)
    _legend_below(figure, [axes])
    return figure


def _types(report: Report) -> Figure:
    """Overall means by type of dialogue, one panel a split."""
    splits = [split for split in SPLITS if any(split in model.scores for model in report.models)]
    kinds = list(dict.fromkeys(kind for model in report.models for _, kind in model.types))
    n_models = len(report.models)
    figure = Figure(figsize=(2 + 4 * len(splits), 1.5 + len(kinds) * (0.35 + 0.16 * n_models)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, sharex=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for place, model in enumerate(report.models):
            for row, kind in enumerate(kinds):
                if scores := model.types.get((split, kind)):
                    height = row + (place - (n_models - 1) / 2) * 0.7 / n_models
                    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
                    hollow = place >= len(_COLOURS)
                    _point(axes, scores[OVERALL], height, colour, marker, short_name(model.model), hollow=hollow)
        _reference_line(axes)
        axes.set(title=split, xlabel="score (answer / reference)")
        axes.grid(axis="x", color="#E5E5E5")
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].set_ylim(len(kinds) - 0.5, -0.5)
    _legend_below(figure, panels)
    return figure


def _position(report: Report) -> Figure:
    """Overall means by the place of the evaluated answer in the review prompt."""
    shown = [(model.model, model.position) for model in report.models if model.position]
    figure = Figure(figsize=(6.5, 1.5 + 0.45 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, (_, bias) in enumerate(shown):
        axes.plot([bias.first.value, bias.second.value], [row - 0.1, row + 0.1], color=GREY, linewidth=1)
        _point(axes, bias.first, row - 0.1, _COLOURS[0], "o", "evaluated answer shown first")
        _point(axes, bias.second, row + 0.1, _COLOURS[1], "s", "shown second")
    _reference_line(axes)
    axes.set_yticks(range(len(shown)), [short_name(name) for name, _ in shown])
    axes.set(title="Order of the answers", xlabel="score (answer / reference)", ylim=(len(shown) - 0.5, -0.5))
    axes.grid(axis="x", color="#E5E5E5")
    _legend_below(figure, [axes])
    return figure


def _ranked(report: Report, place: int) -> dict[str, Estimate]:
    """The means by which a model is ranked."""
    scores = report.models[place].scores
    return scores[report.ranked_by or next(iter(scores))]


def _title(report: Report, what: str) -> str:
    if report.ranked_by is None:
        return f"{what}, each model on what it has"
    return f"{what}, {report.ranked_by if report.ranked_by in SPLITS else 'both test sets'}"


def _point(
    axes: Axes, value: Estimate, height: float, colour: str, marker: str, label: str, *, hollow: bool = False
) -> None:
    """A mean with its interval, if it has one."""
    if np.isnan(value.value):
        return
    if not np.isnan(value.low):
        axes.plot([value.low, value.high], [height, height], color=colour, linewidth=1.2, solid_capstyle="butt")
    face = "white" if hollow else colour
    axes.plot(value.value, height, marker, color=colour, markerfacecolor=face, markersize=5, label=label, linestyle="")


def _reference_line(axes: Axes) -> None:
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0.9)


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, each label once."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(len(handles), 4)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _fonts() -> "dict[RcKeyType, Any]":
    """Settings of the fonts. Matplotlib's cache of fonts may be older than one that is there: so it is looked for."""
    fonts = {Path(path).stem: path for path in font_manager.findSystemFonts()}
    for name in _CHINESE_FONTS:
        if name in fonts:
            font_manager.fontManager.addfont(fonts[name])
            logging.getLogger(font_manager.__name__).setLevel(logging.ERROR)  # that it has no bold face
            chinese = font_manager.FontProperties(fname=fonts[name]).get_name()
            return {"font.family": ["DejaVu Sans", chinese]}
    return {"svg.fonttype": "none"}
