"""Small tables as aligned text, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")

Cell = str | int | float | None


class Table(NamedTuple):
    """A titled table; rows are as long as the header. A float is shown with one decimal, None as an empty cell."""

    name: str
    """For the names of files."""
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text(self) -> str:
        """The table with aligned columns: texts to the left, numbers to the right."""
        lines = [self.header, *(list(map(_shown, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        right = self._numeric()
        shown = ["  ".join(_padded(*cell) for cell in zip(line, widths, right, strict=True)) for line in lines]
        return "\n".join([self.title, *("  " + line.rstrip() for line in shown)])

    def markdown(self) -> str:
        """The table in Markdown, under a heading."""
        rule = ["---:" if right else "---" for right in self._numeric()]
        lines = [self.header, rule, *(list(map(_shown, row)) for row in self.rows)]
        return "\n".join([f"## {self.title}", "", *("| " + " | ".join(line) + " |" for line in lines)])

    def csv(self) -> str:
        """The table with plain numbers, of four decimals at most."""
        file = io.StringIO()
        rows = [list(map(_csv_cell, row)) for row in self.rows]
        csv.writer(file, lineterminator="\n").writerows([self.header, *rows])
        return file.getvalue()

    def _numeric(self) -> list[bool]:
        return [all(not isinstance(cell, str) for cell in column) for column in zip(*self.rows, strict=True)]


def spreadsheet_text(text: str) -> str:
    """A text for CSV: an apostrophe stands before one that a spreadsheet would take for a formula.

    A carriage return, which the writer does not quote, is a line break.
    """
    text = text.replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_cell(cell: Cell) -> Cell:
    return round(cell, 4) if isinstance(cell, float) else spreadsheet_text(cell) if isinstance(cell, str) else cell


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.1f}" if isinstance(cell, float) else f"{cell:,}"


def _padded(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
