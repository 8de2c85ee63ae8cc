"""Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[Any]], *, text_columns: int = 1) -> str:
    """Write a table; the columns of text come first, those after them are aligned to the right."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

    return "\n".join(
        [line(header), "|---" * text_columns + "|---:" * (len(header) - text_columns) + "|", *map(line, lines)]
    )
