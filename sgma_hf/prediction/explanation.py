"""Why a pixel got its class: what it was relied on for, what it resembles, and what each modality changes."""

from collections.abc import Collection, Mapping, Sequence
from math import inf, isnan
from typing import Any

import torch

from ..model.cells_sgma import STAGE_STRIDES, pixel_logits
from ..model.dates_sgma import dates_for, from_days, read_dates
from ..model.encoding_sgma import SgmaEncoding


@torch.no_grad()
def explain_pixel(
    model: Any, processor: Any, images: Mapping[str, Any], x: int, y: int, *, num_prototypes: int = 3
) -> dict[str, Any]:
    """Take the prediction of one pixel apart.

    The sample is encoded once; a modality is left out by fusing the others, so what is missing is absent, not zero.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        images: Raster or series per modality, as the processor takes them; None or no entry for what is missing.
        x: Column of the pixel on the grid of the largest raster, from 0.
        y: Row.
        num_prototypes: How many of the nearest class prototypes to name.

    Returns:
        A dictionary that JSON can hold:

        - `x`, `y`, and `modalities`, those that cover the pixel.
        - `class`, the class that has the highest score, and `scores`, class -> probability in [0, 1].
        - `without`: modality -> `class` and `scores` if that one is left out, None if nothing covers the pixel then.
          A covering modality whose absence changes the class was decisive.
        - `stages`: for each of the four stages `stride` in pixels; `robustness`, modality -> share in [0, 1] in the
          cell that holds the pixel (None without robustness); and `nearest_prototypes`, modality -> list of class and
          cosine similarity in [-1, 1] between the modality's projected feature and the sample's class prototypes,
          nearest first. With one modality the model makes no prototypes, and this is None. Of a series it is the date
          that is relied on most.
        - `dates`, only if there is a series: modality -> list of what covers the pixel, in the order of time, each
          with `date`, ISO 8601 or None if it is unknown, and `reliance`, its share of it, the mean over the stages
          (None without robustness).

    Raises:
        ValueError: If the pixel lies outside the image, or no modality covers it.
    """
    inputs = processor(images=[dict(images)], do_resize=False, return_tensors="pt")
    known = dates_for(model.config, inputs.get("dates"))
    encoding = model.encode(inputs["pixel_values"].to(model.device, model.dtype), inputs["modality_mask"], **known)
    days = {name: read_dates(images, name) for name in model.config.modalities} if "dates" in inputs else None
    return explain_encoding(model, encoding, x, y, days=days, num_prototypes=num_prototypes)


@torch.no_grad()
def explain_encoding(
    model: Any,
    encoding: SgmaEncoding,
    x: int,
    y: int,
    *,
    days: Mapping[str, Sequence[float]] | None = None,
    num_prototypes: int = 3,
) -> dict[str, Any]:
    """What `explain_pixel` says, of what `model.encode` made of one sample.

    `days` are those of each modality's images, as `read_dates` has them; None: there is no series.
    """
    height, width = encoding.image_size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"Pixel (x={x}, y={y}) lies outside the image of {width} x {height} pixels.")
    modalities = list(model.config.modalities)
    there = encoding.present[0] if encoding.pixel_coverage is None else encoding.pixel_coverage[0, :, y, x]
    covering = [name for name, covers in zip(modalities, there.tolist(), strict=True) if covers]
    if not covering:
        raise ValueError(f"No modality covers pixel (x={x}, y={y}); there is nothing to explain.")

    def fuse(left_out: str | None, **kwargs: Any) -> Any:
        subset = [name != left_out for name in modalities]
        return model.fuse_and_decode(encoding, torch.tensor(subset, device=model.device), **kwargs)

    by_date = {} if days is None else {"output_date_robustness": True}
    outputs = fuse(None, output_prototypes=True, **by_date)
    without = {name: _scores(model, fuse(name), x, y) if len(covering) > 1 else None for name in covering}

    def shares(values: torch.Tensor) -> dict[str, float]:
        return dict(zip(modalities, values.tolist(), strict=True))

    stages = [
        {
            "stride": stride,
            "robustness": outputs.robustness and shares(outputs.robustness[stage][0, :, y // stride, x // stride]),
            "nearest_prototypes": _nearest(model, encoding, outputs, stage, x // stride, y // stride, num_prototypes),
        }
        for stage, stride in enumerate(STAGE_STRIDES)
    ]
    everything = _scores(model, outputs, x, y)
    dates = {} if days is None else {"dates": _dates(encoding, outputs, days, covering, modalities, x, y)}
    return {"x": x, "y": y, "modalities": covering} | everything | {"without": without, "stages": stages} | dates


def _dates(
    encoding: SgmaEncoding,
    outputs: Any,
    days: Mapping[str, Sequence[float]],
    covering: Collection[str],
    modalities: Sequence[str],
    x: int,
    y: int,
) -> dict[str, list[dict[str, Any]]]:
    """Date and reliance of each observation that covers a pixel, by modality, in the order of time."""
    there = encoding.observed if encoding.observed_pixels is None else encoding.observed_pixels[..., y, x]
    there, shares = encoding.by_date(there)[0], None
    if outputs.date_robustness is not None:
        cells = zip(outputs.date_robustness, STAGE_STRIDES, strict=True)
        shares = torch.stack([maps[0, ..., y // stride, x // stride] for maps, stride in cells]).mean(0)  # (T, M)
    found = {}
    for name in covering:
        index, own, seen = modalities.index(name), days[name], []
        slots = there[:, index].nonzero().flatten().tolist()
        for slot in sorted(slots, key=lambda slot: inf if isnan(own[slot]) else own[slot]):
            time = from_days(own[slot])
            reliance = None if shares is None else shares[slot, index].item()
            seen.append({"date": time and time.isoformat(timespec="minutes"), "reliance": reliance})
        found[name] = seen
    return found


def _scores(model: Any, outputs: Any, x: int, y: int) -> dict[str, Any]:
    size = tuple(outputs.coverage.shape[-2:])
    logits = pixel_logits(outputs.logits, size)[0, :, y, x]
    names = model.config.class_names
    scores = dict(zip(names, logits.softmax(0).tolist(), strict=True))
    return {"class": names[int(logits.argmax())], "scores": scores}


def _nearest(
    model: Any,
    encoding: SgmaEncoding,
    outputs: Any,
    stage: int,
    column: int,
    row: int,
    count: int,
) -> dict[str, list[dict[str, Any]]] | None:
    """Per modality that is there, the classes whose prototypes are nearest to its feature in a cell."""
    if outputs.prototypes is None:
        return None
    tokens, prototypes, names = encoding.stages[stage], outputs.prototypes[stage][0], model.config.class_names
    cell = row * tokens.size[1] + column
    fractions, position = encoding.observed_fractions, encoding.position[0].tolist()
    covered = [
        fractions is None or bool(fractions[stage][0, index, row, column] > 0) for index in range(len(position))
    ]
    found = {}
    for index, modality in enumerate(model.config.modalities):
        slots = range(index, len(position), encoding.num_modalities)
        slots = [slot for slot in slots if position[slot] >= 0 and covered[slot]]
        if not slots:
            continue
        if len(slots) > 1 and outputs.date_robustness is not None:
            reliance = outputs.date_robustness[stage][0, ..., row, column].flatten()
            slots = sorted(slots, key=lambda slot: -reliance[slot].item())
        feature = tokens.tokens[position[slots[0]], cell].float().unsqueeze(0)
        similarity = torch.nn.functional.cosine_similarity(feature, prototypes.float())  # (K,)
        best = similarity.argsort(descending=True)[:count].tolist()
        found[modality] = [{"class": names[label], "similarity": float(similarity[label])} for label in best]
    return found


def _dates_in_words(dates: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What date of each series is relied on most."""
    lines = []
    for name, seen in dates.items():
        known = [one for one in seen if one["date"] is not None and one["reliance"] is not None]
        if len(seen) > 1 and known:
            best = max(known, key=lambda one: one["reliance"])
            lines.append(
                f"Of {len(seen)} dates of {name} it relies most on {best['date'][:10]} ({best['reliance']:.0%})."
            )
    return lines


def explanation_in_words(explanation: Mapping[str, Any]) -> list[str]:
    """Sentences that say what `explain_pixel` found, the most important first.

    Example:
        >>> found = {"x": 7, "y": 3, "modalities": ["rgb"], "class": "tree", "scores": {"tree": 0.75, "road": 0.25}}
        >>> explanation_in_words({**found, "without": {"rgb": None}, "stages": []})
        ['Pixel x 7, y 3 is tree (75%), before road (25%).', 'Nothing but rgb covers it.']
    """
    best, *others = sorted(explanation["scores"].items(), key=lambda pair: -pair[1])
    before = f", before {others[0][0]} ({others[0][1]:.0%})" if others else ""
    lines = [f"Pixel x {explanation['x']}, y {explanation['y']} is {best[0]} ({best[1]:.0%}){before}."]
    covering, stages = explanation["modalities"], explanation["stages"]
    if len(covering) == 1:
        return [*lines, f"Nothing but {covering[0]} covers it.", *_dates_in_words(explanation.get("dates", {}))]
    if stages[0]["robustness"] is not None:
        shares = {name: sum(stage["robustness"][name] for stage in stages) / len(stages) for name in covering}
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        lines.append("It relies " + ", ".join(f"{share:.0%} on {name}" for name, share in ranked) + ".")
        lines += _dates_in_words(explanation.get("dates", {}))
    for name, rest in explanation["without"].items():
        decides = f": {name} decides" if rest["class"] != best[0] else ""
        would = "would be" if decides else "would still be"
        lines.append(f"Without {name} it {would} {rest['class']} ({rest['scores'][rest['class']]:.0%}){decides}.")
    if stages[0]["nearest_prototypes"]:
        nearest = [f"{found[0]['class']} in {name}" for name, found in stages[0]["nearest_prototypes"].items()]
        lines.append(f"It looks most like {', '.join(nearest)}.")
    return lines
