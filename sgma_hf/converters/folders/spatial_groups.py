"""Splits scenes so that neighbours stay on one side: a validation tile beside a training tile proves nothing."""

import re
from collections.abc import Sequence

import numpy as np

from ...rasters.raster import Georeference, lonlat_bounds, metres_per_unit


_METRES_PER_DEGREE = 111_320.0  # of longitude at the equator; of latitude to half a percent


def group_scenes(
    names: Sequence[str],
    footprints: Sequence[tuple[Georeference | None, tuple[int, int]]],
    *,
    distance: float | None = None,
    regex: str | None = None,
) -> list[int]:
    """Number the groups that must not be divided; without `distance` and `regex`, each scene is its own.

    `footprints` are place and (height, width) of each scene. Those with a gap of less than `distance` metres between
    their extents are of one group, and those whose names give the same first group (or whole match) of `regex`.
    """
    pairs = [] if distance is None else _close_pairs(names, footprints, distance)
    if regex is not None:
        first: dict[str, int] = {}
        for index, key in enumerate(match_names(names, regex, "--group_regex")):
            pairs.append((first.setdefault(key, index), index))
    groups = list(range(len(names)))  # a group has the number of its first scene
    for pair in pairs:
        one, other = sorted(groups[index] for index in pair)
        if one != other:
            groups = [one if group == other else group for group in groups]
    return np.unique(groups, return_inverse=True)[1].tolist()


def match_names(names: Sequence[str], regex: str, flag: str) -> list[str]:
    """The first group, or the whole match, of a regular expression in each name; a ValueError names the `flag`."""
    try:
        matches = list(map(re.compile(regex).search, names))
    except re.error as error:
        raise ValueError(f"{flag} {regex!r} is not a regular expression: {error}.") from error
    unmatched = [name for name, match in zip(names, matches, strict=True) if match is None]
    if unmatched:
        raise ValueError(f"{flag} {regex!r} does not match {unmatched[:5]} ({len(unmatched)} scenes in all).")
    return [next((group for group in match.groups()[:1] if group is not None), match[0]) for match in matches]


def _close_pairs(
    names: Sequence[str], footprints: Sequence[tuple[Georeference | None, tuple[int, int]]], distance: float
) -> list[tuple[int, int]]:
    """Pairs of scenes with less than `distance` metres between their bounding boxes."""
    if distance < 0:
        raise ValueError(f"--group_distance is {distance}; expected metres, 0 or more.")
    placeless = [name for name, (place, _) in zip(names, footprints, strict=True) if place is None or not place.crs]
    if placeless:
        raise ValueError(
            f"--group_distance needs georeferenced scenes with a CRS; {placeless[:5]} have none ({len(placeless)} in "
            "all). Group by name with --group_regex."
        )
    boxes = _boxes(footprints)
    pairs = []
    for index, box in enumerate(boxes):
        near = np.flatnonzero(_gaps(box, boxes[index + 1 :]) < distance)
        pairs += [(index, index + 1 + int(other)) for other in near]
    return pairs


def least_gap(
    footprints: Sequence[tuple[Georeference | None, tuple[int, int]]],
    others: Sequence[tuple[Georeference | None, tuple[int, int]]],
) -> float | None:
    """Metres from any scene to the nearest of the others, 0 where they touch; None if the place of one is unknown."""
    both = [*footprints, *others]
    if any(place is None or not place.crs for place, _ in both) or not footprints or not others:
        return None
    boxes = _boxes(both)
    rest = boxes[len(footprints) :]
    return min(float(_gaps(box, rest).min()) for box in boxes[: len(footprints)])


def _boxes(footprints: Sequence[tuple[Georeference, tuple[int, int]]]) -> np.ndarray:
    """Bounding boxes in metres, (scenes, 5): west, south, east, north, and metres on the ground per metre of west."""
    units = {place.crs: metres_per_unit(place.crs) for place, _ in footprints}
    if len(units) == 1 and None not in units.values():
        boxes = np.array([place.bounds(size) for place, size in footprints]) * units.popitem()[1]
        scale = np.ones(len(boxes))
    else:  # several zones, or degrees: compare on a sphere, good to half a percent near each other
        degrees = np.array([lonlat_bounds(place, size) for place, size in footprints])
        boxes = degrees * _METRES_PER_DEGREE
        scale = np.cos(np.deg2rad((degrees[:, 1] + degrees[:, 3]) / 2))
    return np.column_stack([boxes, scale])


def _gaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Metres from a box of `_boxes` to each of the others."""
    west, south, east, north, scale = box
    gap_x = np.maximum(others[:, 0] - east, west - others[:, 2]).clip(0) * scale
    gap_y = np.maximum(others[:, 1] - north, south - others[:, 3]).clip(0)
    return np.hypot(gap_x, gap_y)


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless it is a share of rows that leaves some on each side."""
    if not 0 < fraction < 1:
        raise ValueError(f"--val_fraction is {fraction:g}; expected a share between 0 and 1.")


def choose_validation(groups: Sequence[int], sizes: Sequence[int], fraction: float, seed: int) -> list[bool]:
    """Draw whole groups for validation until they hold about `fraction` of the rows, at least one on each side.

    Per scene, `groups` has the number of its group and `sizes` its rows; the result says whether it was drawn.
    """
    check_fraction(fraction)
    totals = np.bincount(groups, weights=sizes)
    if len(totals) < 2:
        raise ValueError(
            "All training scenes are in one group, so none can be set aside for validation. Reduce --group_distance, "
            "change --group_regex, or give the scenes split folders."
        )
    target, taken, chosen = fraction * totals.sum(), 0.0, set()
    for group in np.random.default_rng(seed).permutation(len(totals)).tolist():
        # Taken if that brings the sum nearer to the target.
        if len(chosen) < len(totals) - 1 and abs(taken + totals[group] - target) < abs(taken - target):
            chosen.add(group)
            taken += totals[group]
    chosen = chosen or {int(np.argmin(totals))}
    return [group in chosen for group in groups]
