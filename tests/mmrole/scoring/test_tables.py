"""Tests of the report's tables: what machines read back, and names that would be markup."""

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrole.scoring.measures import MEASURES, OVERALL, WEIGHTED
from mmrole.scoring.paper import PAPER_ROWS
from mmrole.scoring.report import Report, make_report
from mmrole.scoring.reviews import IN_TEST, ModelReviews, read_models
from mmrole.scoring.tables import leaderboard_markdown
from mmrole.scoring.tables_csv import distributions_csv, leaderboard_csv, scores_csv
from mmrole.scoring.tables_tex import escape_tex, leaderboard_tex

HOSTILE = "a|b_c$d%e&f#g{h}~i^j\\k<l>"


@pytest.fixture(scope="module")
def report(published: list[ModelReviews]) -> Report:
    return make_report(published, PAPER_ROWS, draws=500)


@pytest.fixture
def hostile(review_record: Callable, write_reviews: Callable) -> Report:
    """A report on a model, a type and a character that are named like markup."""
    records = [review_record(number, role="<b>|x|</b>") for number in range(4)]
    return make_report(read_models([write_reviews(records, model=HOSTILE, kind="|_|")], {}), draws=200)


def test_csv_holds_every_mean(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(report))))
    assert [row["source"] for row in rows] == ["reviews"] * 4 + ["paper"] * 13
    for row, model in zip(rows, report.models, strict=False):
        assert (row["model"], row["split"]) == (model.model, IN_TEST)
        for name in MEASURES:
            estimate = model.scores[IN_TEST][name]
            numbers = [float(row[f"{name}{end}"]) for end in ("", " low", " high")]
            assert numbers == pytest.approx(estimate[:3], abs=1e-6)
        assert int(row["expected"]) - int(row["empty"]) == int(row["scored"]) == int(row["n Fluency"])
    assert (rows[4]["model"], rows[4]["split"], rows[4][OVERALL]) == ("GPT-4 Turbo", WEIGHTED, "1.099")


def test_the_long_form_holds_every_group(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv(report))))
    agent = {(row["by"], row["group"], row["measure"]): row for row in rows if row["model"] == "mmrole-agent"}
    assert len(agent) == len(MEASURES) * (1 + 3 + 72 + 11 + 3 + 2)
    (model,) = (model for model in report.models if model.model == "mmrole-agent")
    row = agent["type", "In-Test human-role", "Fluency"]
    estimate = model.types[IN_TEST, "human-role"]["Fluency"]
    assert [float(row[name]) for name in ("mean", "low", "high", "n")] == pytest.approx(estimate, abs=1e-6)
    assert agent["category", "hypothetical", OVERALL]["n"] == "60"


def test_distributions_count_every_published_score(report: Report, published: list[ModelReviews]) -> None:
    rows = list(csv.DictReader(io.StringIO(distributions_csv(report))))
    assert len(rows) == 4 * 8 * 11
    for model in published:
        pairs = [review.score for record in model.records for review in record.reviews.values()]
        for place, side in enumerate(("answer", "reference")):
            own = dict.fromkeys(range(11), 0)
            for row in rows:
                own[int(row["score"])] += int(row[side]) * (row["model"] == model.model)
            assert own == {score: sum(round(pair[place]) == score for pair in pairs) for score in range(11)}


def test_every_row_of_the_markdown_has_all_cells(report: Report, hostile: Report) -> None:
    for text in (leaderboard_markdown(report), leaderboard_markdown(hostile)):
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
            assert len(set(cells)) == 1


def test_names_are_no_markup_in_markdown(hostile: Report) -> None:
    text = leaderboard_markdown(hostile)
    assert not re.search(r"(?<!\\)<", text)
    assert r"a\|b\_c$d%e&amp;f" in text


def test_the_papers_rows_can_be_left_out(report: Report, published: list[ModelReviews]) -> None:
    without = make_report(published, draws=500)
    for make in (leaderboard_csv, leaderboard_markdown, leaderboard_tex):
        assert "Claude 3 Opus" not in make(without)
        assert "MMRole-Agent" not in make(without)
    assert "Claude 3 Opus" in leaderboard_csv(report)
    assert "Claude 3 Opus" in leaderboard_markdown(report)
    assert "MMRole-Agent (paper)" in leaderboard_tex(report)


def test_tex_is_balanced_and_escaped(report: Report, hostile: Report) -> None:
    for text in (leaderboard_tex(report), leaderboard_tex(hostile)):
        plain = re.sub(r"\\[&%$#_{}]", "", text)
        assert plain.count("{") == plain.count("}")
        for environment in ("table", "tabular"):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") >= 1
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
        rows = [line for line in plain.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") for line in rows} == {columns - 1}
    assert escape_tex(HOSTILE) in leaderboard_tex(hostile)
    assert escape_tex("a_b&c\\") == r"a\_b\&c\textbackslash{}"


def test_the_best_model_of_a_column_is_bold(report: Report) -> None:
    bold = [line for line in leaderboard_tex(report).splitlines() if r"\textbf" in line]
    assert len(bold) == 1
    assert bold[0].startswith("gpt-4-turbo")
    assert bold[0].count(r"\textbf") == 9


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str, review_record: Callable, write_reviews: Callable) -> None:
    path = write_reviews([review_record(number, role=name) for number in range(3)])
    (model,) = read_models([path], {})
    report = make_report([ModelReviews(name, model.files)], draws=100)
    for text in (leaderboard_csv(report), scores_csv(report), distributions_csv(report)):
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert "'" + name.replace("\r", "\n") in cells
        assert name not in cells


def test_a_row_of_tex_does_not_begin_with_an_argument() -> None:
    assert escape_tex("[x]") == "{}[x]"
    assert escape_tex(" *x") == "{}*x"
    assert escape_tex("a\x00\udcff\nb--c|`") == r"a b-{}-{}c\textbar{}\textasciigrave{}"


@pytest.mark.long
def test_latex_prints_the_tables_of_hostile_names(
    review_record: Callable, write_reviews: Callable, tmp_path: Path
) -> None:
    """pdflatex stops at the first error; a warning would be a box that does not fit."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-base texlive-latex-recommended)")
    path = write_reviews([review_record(number) for number in range(3)])
    (model,) = read_models([path], {})
    names = [
        HOSTILE,
        "[x] starts",
        "*star",
        "--dash",
        "?`'\"",
        "\\end{tabular}",
        "%comment",
        "a\x01b\x1b[2J",
        "bad\udcff",
    ]
    report = make_report([ModelReviews(name, model.files) for name in names], PAPER_ROWS, draws=100)
    lines = [r"\documentclass{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    text = "\n".join([*lines, leaderboard_tex(report), r"\end{document}"])
    (tmp_path / "tables.tex").write_text(text, "ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
