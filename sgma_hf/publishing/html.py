"""HTML in which a text stays a text, whatever it holds."""

from html import escape
from typing import Any

from .tables import Table


class Html(str):
    """What is HTML already."""


_WITHOUT_END = ("img", "col", "input")


def element(tag: str, *content: Any, **attributes: Any) -> Html:
    """An element; what it holds is escaped, but for `Html`. Attributes may end in `_`, and those that are None go.

    Example:
        >>> element("p", "a < b", element("b", "!"), class_="note")
        '<p class="note">a &lt; b<b>!</b></p>'
    """
    given = {name.rstrip("_"): value for name, value in attributes.items() if value is not None}
    start = f"<{tag}" + "".join(f' {name}="{escape(str(value))}"' for name, value in given.items()) + ">"
    return Html(start if tag in _WITHOUT_END else f"{start}{joined(*content)}</{tag}>")


def joined(*content: Any) -> Html:
    """Pieces one after the other, texts escaped."""
    return Html("".join(piece if isinstance(piece, Html) else escape(str(piece)) for piece in content))


def html_table(table: Table) -> Html:
    """A table under its title, the columns of text first, wide ones to be scrolled."""
    kinds = ["text"] * table.text_columns + ["number"] * (len(table.header) - table.text_columns)

    def row(tag: str, cells: Any) -> Html:
        return element("tr", *(element(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)))

    head, body = (
        element("thead", row("th", table.header)),
        element("tbody", *(row("td", line) for line in table.lines)),
    )
    caption = [element("caption", table.title)] if table.title else []
    return element("div", element("table", *caption, head, body), class_="wide")
