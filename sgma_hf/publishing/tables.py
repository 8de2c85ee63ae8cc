"""Tables as Markdown, LaTeX and CSV, with the same figures in all three."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A figure as it is written in a table, and what it is for those who calculate with it."""

    text: str  # Markdown
    value: float | None = None
    deviation: float | None = None
    low: float | None = None  # of an interval
    high: float | None = None
    count: int | None = None  # of values that the figure is a mean of

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table of Markdown texts, numbers and `Cell`s, the first column of a line being its name."""

    name: str  # one word, to choose it by
    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[Any]]
    note: str = ""  # what has to be known to read it
    text_columns: int = 1  # they come first

    def markdown(self) -> str:
        """The lines alone, see `markdown_table`."""
        return markdown_table(self.header, self.lines, text_columns=self.text_columns)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[Any]], *, text_columns: int = 1) -> str:
    """Write a table; the columns of text come first, those after them are aligned to the right."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

    return "\n".join(
        [line(header), "|---" * text_columns + "|---:" * (len(header) - text_columns) + "|", *map(line, lines)]
    )


def latex_table(table: Table, *, heading: str = "") -> str:
    """Write a table for LaTeX with the package `booktabs`; its note goes into the caption, after the heading."""
    longest = max((len(str(line[table.text_columns - 1])) for line in table.lines), default=0)
    last = r"p{0.5\linewidth}" if longest > 60 else "l"  # it may hold sentences
    columns = "l" * (table.text_columns - 1) + last + "r" * (len(table.header) - table.text_columns)
    header, *lines = (" & ".join(map(_latex, cells)) + r" \\" for cells in (table.header, *table.lines))
    caption = _latex(". ".join(filter(None, [heading, table.title, table.note])))
    parts = [r"\begin{table}", rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}", r"\centering"]
    parts += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def csv_text(tables: Mapping[str, Sequence[Table]]) -> str:
    """Write tables under their headings as one CSV file, a line for each cell, figures with all their digits."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["heading", "table", "row", "column", *Cell._fields[1:]])
    for heading, those in tables.items():
        for table in those:
            for first, *cells in table.lines:
                for column, cell in zip(table.header[1:], cells, strict=True):
                    figures = cell[1:] if isinstance(cell, Cell) else (_plain(cell), *[None] * 4)
                    writer.writerow([heading, table.name, _plain(first), _plain(column), *figures])
    return output.getvalue()


def rows_as_csv(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows, by the names of their columns, as CSV; columns that `header` leaves out are left out."""
    output = io.StringIO()
    writer = csv.DictWriter(output, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return output.getvalue()


def _plain(cell: Any) -> str:
    """A cell's text without Markdown."""
    return re.sub(r"\*\*|`", "", str(cell))


_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _latex(cell: Any) -> str:
    text = "".join(_LATEX.get(character, character) for character in str(cell))
    text = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return re.sub(r"`(.+?)`", r"\\texttt{\1}", text)
