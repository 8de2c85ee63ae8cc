"""Maps on one page of HTML, which needs nothing beside it: `maps_page`."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ...publishing.html import Html, element, html_table, joined
from ...publishing.results import result_remarks, result_tables
from ...publishing.tables import Table
from ..scenes.summary import least_certain
from .shown_maps import SHARE_COLORS, Color, MapFolder, ShownMap


_TEMPLATE = Path(__file__).with_name("page.html")
_UNKNOWN = "–"


def maps_page(folder: MapFolder, title: str, results: Mapping[str, Any] | None = None) -> str:
    """All maps of a folder on a page: what they show together, each of them, and how they were made.

    Args:
        folder: What `read_maps` found.
        title: Heading of the page.
        results: What `sgma-hf evaluate` wrote of the checkpoint; its scores and confusion matrices are shown.

    Returns:
        HTML that holds its pictures, runs no script and asks no network. What comes from files is text in it.
    """
    done = [one for one in folder.maps if one.row["error"] is None]
    sections = [
        element("h1", title),
        _overview(folder.maps, done),
        element("div", *map(html_table, _totals(done)), class_="row"),
        _failed(folder.maps),
        _least_certain(folder.maps),
        *([] if results is None else _evaluation(results)),
        element("h2", "Maps"),
        _share_scale(done),
        element("div", *(_card(number, one) for number, one in enumerate(folder.maps) if one.classes), class_="cards"),
        element("h2", "All scenes as a table"),
        element("details", element("summary", f"{len(folder.maps)} scenes"), html_table(_table(folder.maps))),
        element("h2", "How the maps were made"),
        _made(folder.made, results),
    ]
    body = "\n".join(section for section in sections if section)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def _overview(maps: Sequence[ShownMap], done: Sequence[ShownMap]) -> Html:
    areas = [one.row["area_ha"] for one in done if one.row["area_ha"] is not None]
    parts = [f"{len(done)} {'map' if len(done) == 1 else 'maps'}"]
    parts += [f"{len(maps) - len(done)} failed"] if len(maps) > len(done) else []
    parts += [f"{_hectares(sum(areas))} ha"] if areas else []
    parts += [f"{len(done) - len(areas)} without a place on Earth"] if areas and len(areas) < len(done) else []
    return element("p", ", ".join(parts), class_="quiet")


def _totals(done: Sequence[ShownMap]) -> list[Table]:
    """What all maps show together, and what is known of each modality."""
    colors = {name: color for one in reversed(done) for name, color in one.classes.items()}
    rows = [one.row for one in done]
    on_earth = all(row["area_ha"] is not None for row in rows)
    parts = {name: sum(_part(row, name, on_earth=on_earth) for row in rows) for name in colors}
    total = sum(parts.values())
    lines = [
        [
            joined(swatch(colors[name]), name),
            _hectares(part, total) if on_earth else _UNKNOWN,
            _percent(part / total if total else None),
        ]
        for name, part in sorted(parts.items(), key=lambda pair: -pair[1])
    ]
    tables = [Table("classes", "Areas and legend", ["class", "ha", "share"], lines)] if lines else []
    missing = [row["missing"].split() for row in rows if row["missing"] is not None]
    lines = [
        [
            name,
            sum(name in found for found in missing) if missing else _UNKNOWN,
            _percent(_mean(row.get(f"reliance_{name}") for row in rows)),
            _share(_mean(row.get(f"agreement_{name}") for row in rows)),
        ]
        for name in _modalities(rows)
    ]
    header = ["modality", "missing in", "mean reliance", "mean agreement"]
    return [*tables, Table("modalities", "Modalities", header, lines)] if lines else tables


def _part(row: Mapping[str, Any], name: str, *, on_earth: bool) -> float:
    """Hectares of a class in a scene, or its pixels, where some scene has no place on Earth."""
    if on_earth:
        return row.get(f"area_ha_{name}") or 0
    return (row.get(f"share_{name}") or 0) * (1 - row["share_unmapped"]) * row["height"] * row["width"]


def _failed(maps: Sequence[ShownMap]) -> Html:
    lines = [element("li", element("b", one.row["scene"]), ": ", one.row["error"]) for one in maps if one.row["error"]]
    return joined(element("h2", "Without a map"), element("ul", *lines, class_="failed")) if lines else Html("")


def _least_certain(maps: Sequence[ShownMap]) -> Html:
    """Links to the maps that are least certain, where there are more than those."""
    numbers = {one.row["scene"]: number for number, one in enumerate(maps)}
    rows = least_certain([one.row for one in maps])
    if not rows or len(rows) == sum(one.row["confidence"] is not None for one in maps):
        return Html("")
    links = [
        joined(element("a", row["scene"], href=f"#scene-{numbers[row['scene']]}"), f" ({row['confidence']:.2f}) ")
        for row in rows
    ]
    words = "Lowest mean confidence, the ones to label next: "
    return joined(element("h2", "Least certain"), element("p", words, *links))


def _evaluation(results: Mapping[str, Any]) -> list[Html]:
    matrices = [(name, one["confusion"]) for name, one in results["combinations"].items() if one.get("confusion")]
    of_all = [_confusion(results["class_names"], *matrices[-1])] if matrices else []
    others = [_confusion(results["class_names"], *one) for one in matrices[:-1]]
    if others:
        words = f"Confusion matrices of the other {len(others)} combinations"
        of_all.append(element("details", element("summary", words), element("div", *others, class_="row")))
    where = ", ".join(str(results[key]) for key in ("dataset", "split", "label") if results.get(key))
    return [
        element("h2", "Evaluation", f" on {where}" if where else ""),
        *(element("p", remark, class_="quiet") for remark in result_remarks(results)),
        element("div", *map(html_table, result_tables(results)), *of_all[:1], class_="row"),
        *of_all[1:],
    ]


def _confusion(names: Sequence[str], combination: str, matrix: Sequence[Sequence[int]]) -> Html:
    """Pixels, truth by prediction, and the share of the truth's class that they are."""
    lines = []
    for name, counts in zip(names, matrix, strict=True):
        shares = [count / (sum(counts) or 1) for count in counts]
        cells = [
            element(
                "td", _percent(share), element("small", f"{count:,}"), class_="number", style=f"--share: {share:.3f}"
            )
            for share, count in zip(shares, counts, strict=True)
        ]
        lines.append(element("tr", element("td", name), *cells))
    head = element("tr", element("th", "truth"), *(element("th", name, class_="number") for name in names))
    caption = element("caption", f"Confusion from {combination}: where the pixels of each class went")
    return element("div", element("table", caption, head, *lines, class_="confusion"), class_="wide")


def _share_scale(done: Sequence[ShownMap]) -> Html:
    """What the colours of the small pictures mean."""
    if not any(len(one.pictures) > 1 for one in done):
        return Html("")
    trusted = {name: color for one in done for name, color in one.decision.items()}
    names = [joined(swatch(color), name, " ") for name, color in trusted.items()]
    return element("p", share_scale(), *(["Relied on most: ", *names] if names else []), class_="quiet")


def share_scale() -> Html:
    """The colours of `share_picture`, a `.scale` of spans."""
    steps = [element("span", style=f"background: {_css(color)}") for color in SHARE_COLORS.tolist()]
    scale = element("span", "0 ", element("span", *steps, class_="scale"), " 1", style="white-space: nowrap")
    return joined("Confidence, reliance and agreement: ", scale, ". ")


def _card(number: int, one: ShownMap) -> Html:
    """A scene: its map, the areas, what it was made from, and the small pictures."""
    row, (title, *extras) = one.row, one.pictures
    shares = {name: row[f"share_{name}"] for name in one.classes if row.get(f"share_{name}")}
    bar = [
        element("span", style=f"width: {100 * share:.2f}%; background: {_css(one.classes[name])}")
        for name, share in shares.items()
    ]
    lines = [
        [joined(swatch(one.classes[name]), name), _hectares(row[f"area_ha_{name}"], row["area_ha"]), _percent(share)]
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    ]
    if row["share_unmapped"]:
        lines.append(["no class", "", f"{_percent(row['share_unmapped'])} of all"])
    words = f"{row['height']} x {row['width']} pixels. Missing: {_missing(row) or 'nothing'}. "
    words += f"Mean confidence: {_share(row['confidence'])}."
    return element(
        "section",
        element("h3", row["scene"]),
        _figure(one.pictures[title], f"Map of {row['scene']}"),
        element("div", *bar, class_="bar"),
        html_table(Table("areas", "", ["class", "ha", "share"], lines)),
        *([html_table(table)] if (table := _modality_table(row)) else []),
        element("p", words, class_="quiet"),
        element("div", *(_figure(one.pictures[name], name, caption=name) for name in extras), class_="extras"),
        class_="card",
        id=f"scene-{number}",
    )


def _modality_table(row: Mapping[str, Any]) -> Table | None:
    lines = []
    for name in _modalities([row]):
        is_missing = name in (row["missing"] or "").split()
        reliance, agreement = row.get(f"reliance_{name}"), row.get(f"agreement_{name}")
        lines.append([name, "missing" if is_missing else _percent(reliance), "" if is_missing else _share(agreement)])
    return Table("modalities", "", ["modality", "reliance", "agreement"], lines) if lines else None


def _figure(png: bytes, alt: str, caption: str = "") -> Html:
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = element("img", src=source, alt=alt, width=width, height=height, loading="lazy")
    return element("figure", image, *([element("figcaption", caption)] if caption else []))


def _table(maps: Sequence[ShownMap]) -> Table:
    rows = [one.row for one in maps]
    classes = dict.fromkeys(name for one in maps for name in one.classes)
    columns = {f"area_ha_{name}": (f"{name}, ha", _hectares) for name in classes}
    columns |= {f"reliance_{name}": (f"reliance on {name}", _percent) for name in _modalities(rows)}
    columns |= {f"agreement_{name}": (f"agreement of {name}", _share) for name in _modalities(rows)}
    header = ["scene", "missing", "confidence", "ha", *(title for title, _ in columns.values())]
    lines = []
    for number, row in enumerate(rows):
        link = element("a", row["scene"], href=f"#scene-{number}") if maps[number].classes else row["scene"]
        first = [
            link,
            "no map" if row["error"] else _missing(row),
            _share(row["confidence"]),
            _hectares(row["area_ha"]),
        ]
        lines.append([*first, *(write(row.get(column)) for column, (_, write) in columns.items())])
    return Table("scenes", "", header, lines, text_columns=2)


def _made(made: Mapping[str, str], results: Mapping[str, Any] | None) -> Html:
    known = dict(made)
    if results is not None and results.get("model"):
        known["scores are of"] = results["model"]
    if not made:
        known = {"command": "not recorded: the maps were made one by one"} | known
    pairs = [(element("dt", name), element("dd", element("code", text))) for name, text in known.items()]
    return element("dl", *(part for pair in pairs for part in pair))


def _missing(row: Mapping[str, Any]) -> str:
    return "not recorded" if row["missing"] is None else ", ".join(row["missing"].split())


def _modalities(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    columns = dict.fromkeys(column for row in rows for column in row if column.startswith("reliance_"))
    return [column.removeprefix("reliance_") for column in columns]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def swatch(color: Color) -> Html:
    """A spot of a colour, a `.swatch`."""
    return element("span", class_="swatch", style=f"background: {_css(color)}")


def _css(color: Color) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in color)


def _hectares(area: float | None, total: float | None = None) -> str:
    """An area with as many digits as the total that it is a part of, which is itself if there is none."""
    digits = 2 if (total or area or 0) >= 10 else 4  # to the square metre
    return _UNKNOWN if area is None else f"{area:,.{digits}f}"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.1%}"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"
