"""The report's leaderboards for a LaTeX paper: `leaderboard.tex`, in the style of booktabs."""

import math
import re

from mmrole.data.prompts import METRICS
from mmrole.scoring.measures import OVERALL
from mmrole.scoring.report import Report
from mmrole.scoring.statistics import Estimate
from mmrole.scoring.tables import TITLES, number, shown_splits

_ESCAPED = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
}


def leaderboard_tex(report: Report) -> str:
    """One table for each split and mean of splits; of the models, the best of each column is bold."""
    comment = (
        "% Needs \\usepackage{booktabs,graphicx}. Means of answer over reference; small: 95 % bootstrap intervals by "
        "image.\n"
    )
    return comment + "\n".join(_table(report, key) for key in shown_splits(report))


def escape_tex(text: str) -> str:
    """Text as LaTeX prints it, whatever it holds; what is not ASCII needs an engine and a font that have it.

    Characters that cannot be printed become spaces. At the start of a row, `[` and `*` would be read as arguments of
    the command before it.
    """
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    escaped = "".join(_ESCAPED.get(character, character) for character in text).replace("--", "-{}-{}")
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped


def _table(report: Report, key: str) -> str:
    columns = (OVERALL, *METRICS)
    models = [model for model in report.models if key in model.scores]
    best = {name: _highest([model.scores[key][name].value for model in models]) for name in columns}
    lines = []
    for model in models:
        cells = [_cell(model.scores[key][name], best[name], name == OVERALL) for name in columns]
        lines.append([escape_tex(model.model), *cells])
    paper = [
        [escape_tex(f"{row.model} (paper)"), *(number(row.scores[name]) for name in columns)]
        for row in report.paper
        if row.split == key
    ]
    body = [" & ".join(line) + r" \\" for line in lines]
    if lines and paper:
        body.append(r"\midrule")
    body += [" & ".join(line) + r" \\" for line in paper]
    heads = ["Model", *(_abbreviated(name) for name in columns)]
    legend = ", ".join(f"{_abbreviated(metric)}: {metric}" for metric in METRICS)
    caption = f"MMRole-Eval, reviews by {report.judge}: {TITLES[key]}. {legend}."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_tex(caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            r"\begin{tabular}{l" + "r" * len(columns) + "}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _highest(values: list[float]) -> str:
    """The highest of some numbers as it is shown, so that those that look the same are the same."""
    return number(max((value for value in values if not math.isnan(value)), default=math.inf))


def _cell(value: Estimate, best: str, with_interval: bool) -> str:
    shown = number(value.value)
    cell = rf"\textbf{{{shown}}}" if shown == best else shown.replace("–", "--")
    if with_interval and not math.isnan(value.low):
        cell += rf" {{\scriptsize [{value.low:.3f}, {value.high:.3f}]}}"
    return cell


def _abbreviated(name: str) -> str:
    """A metric by its initials: Image-Text Relevance is ITR. Overall stays."""
    return name if name == OVERALL else "".join(re.findall(r"[A-Z]", name))
