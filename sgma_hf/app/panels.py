"""Pictures of an answer side by side, with their legend, as HTML that holds them."""

import base64
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..model.limits_sgma import IGNORE_INDEX
from ..prediction.report.maps_page import share_scale, swatch
from ..prediction.report.shown_maps import class_picture, share_picture
from ..publishing.html import Html, element, html_table, joined
from ..publishing.tables import Table
from ..visualization.palette import class_palette
from .answers import Answer, scores
from .sights import Sight


_RIGHT, _WRONG = (205, 210, 215), (213, 94, 0)


def panels(config: Any, sight: Sight, found: Answer, modalities: Collection[str], point: Sequence[int] | None) -> Html:
    """All pictures of a sight: the map, the truth where there is one, confidence; and a card for each modality.

    `modalities` are those that are switched on; `point` is a pixel (x, y) of the sight to mark.
    """
    colors = config.palette or class_palette(config.class_names)
    pictures = [_figure("map", class_picture(found.labels, colors))]
    if sight.truth is not None:
        counted = (found.labels != IGNORE_INDEX) & (sight.truth != IGNORE_INDEX)
        pictures.append(_figure("truth", class_picture(sight.truth, colors)))
        wrong = np.where(counted, found.labels != sight.truth, IGNORE_INDEX).astype(np.uint8)
        pictures.append(_figure("errors", class_picture(wrong, [_RIGHT, _WRONG])))
    pictures.append(_figure("confidence", share_picture(found.confidence)))
    cards = [_card(name, sight, found, is_on=name in modalities) for name in config.modalities]
    height, width = sight.window[2:]
    x, y = point or (-1, -1)
    marker = f"--x: {100 * (x + 0.5) / width:.3f}%; --y: {100 * (y + 0.5) / height:.3f}%"
    return element(
        "div",
        element(
            "div", *pictures, element("div", *_legend(config, colors, sight, found), class_="legend"), class_="maps"
        ),
        element("div", *cards, class_="cards"),
        class_="sight" if point else "sight unmarked",
        style=marker,
    )


def _card(name: str, sight: Sight, found: Answer, *, is_on: bool) -> Html:
    """What a modality shows, and how the answer relies on it."""
    if name not in sight.images:
        return element("section", element("h3", name, element("small", "missing here")), class_="card off")
    caption = ""
    if name in sight.dates:
        date = sight.shown_date(name)[1]
        caption = f"{len(sight.dates[name])} dates; this is {date.date() if date else 'one that nobody knows'}"
    parts = [_figure(caption, sight.picture(name), kind="webp", alt=name, **{"data-modality": name})]
    if name in sight.dates:
        parts.append(_dates(name, sight, found))
    for title, maps in (("reliance", found.reliance), ("agreement", found.agreement)):
        if name in maps:
            is_empty = np.isnan(maps[name]).all()  # of agreement, where there is no other to agree with
            mean = "nothing to compare with" if is_empty else f"{np.nanmean(maps[name]):.2f} on average"
            parts.append(_figure(f"{title}: {mean}", share_picture(maps[name]), alt=f"{title} {name}"))
    heading = element("h3", name, *([] if is_on else [element("small", "switched off")]))
    return element("section", heading, *parts, class_="card" if is_on else "card off")


def _dates(name: str, sight: Sight, found: Answer) -> Html:
    """The dates of a series: which is shown, which count, and how much the map relies on each."""
    own = {index: date for index, date in enumerate(sight.moments) if date[0] == name}
    on, lines = set(own.values()) - sight.off, []
    for index, date in own.items():
        text = str(date[1] or "unknown").removesuffix(" 00:00:00")
        is_shown, is_last = date == sight.shown_date(name), on == {date}  # one has to stay: no map is of nothing
        shown = element("input", type="radio", name=f"shown {name}", value=index, checked=is_shown or None)
        counts = {"type": "checkbox", "value": index, "checked": date in on or None, "disabled": is_last or None}
        share = f"{found.by_date[date]:.1%}" if date in on and date in found.by_date else ""
        counts["aria-label"] = f"{name} of {text} counts"
        lines.append([element("label", shown, text), element("input", **counts), share])
    return element("div", html_table(Table("", "", ["shown", "counts", "reliance"], lines)), class_="dates")


def _figure(caption: str, picture: bytes, *, kind: str = "png", alt: str = "", **attributes: Any) -> Html:
    source = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    image = element("img", src=source, alt=alt or caption, draggable="false", **attributes)
    return element("figure", element("div", image, class_="frame"), element("figcaption", caption))


def _legend(config: Any, colors: Sequence[Sequence[int]], sight: Sight, found: Answer) -> list[Html]:
    """Classes and their colours, the share of each in the map and in the truth, and how well they agree."""
    scored = scores(sight, found, config.num_labels)
    shares = [_shares(found.labels, config.num_labels)]
    if scored is not None:
        shares.append(_shares(sight.truth, config.num_labels))
    lines = []
    for index, (name, color) in enumerate(zip(config.class_names, colors, strict=True)):
        cells = [f"{share[index]:.1%}" for share in shares]
        if scored is not None:
            iou = scored["iou"][index]
            cells.append("" if iou is None else f"{iou:.1%}")
        lines.append([joined(swatch(color), name), *cells])
    header = ["class", "map", *([] if scored is None else ["truth", "IoU"])]
    parts = [html_table(Table("classes", "", header, lines)), element("p", share_scale())]
    if scored is not None:
        parts.append(
            element(
                "p", f"{scored['accuracy']:.1%} of the labelled pixels are right, ", swatch(_WRONG), "the others not."
            )
        )
    return parts


def _shares(ids: np.ndarray, num_labels: int) -> np.ndarray:
    counts = np.bincount(ids.ravel(), minlength=num_labels)[:num_labels]
    return counts / max(1, counts.sum())
