"""Splits scenes so that neighbours stay on one side: a validation tile beside a training tile proves nothing."""

import re
from collections.abc import Sequence

import numpy as np

from ...rasters.files import Georeference, lonlat_bounds, metres_per_unit


_METRES_PER_DEGREE = 111_320.0  # of longitude at the equator; of latitude to half a percent


def group_scenes(
    names: Sequence[str],
    footprints: Sequence[tuple[Georeference | None, tuple[int, int]]],
    *,
    distance: float | None = None,
    regex: str | None = None,
) -> list[int]:
    """Number the groups that must not be divided.

    Args:
        names: Of the scenes.
        footprints: Place and (height, width) of each.
        distance: Scenes with a gap of less than so many metres between their extents are of one group.
        regex: Scenes whose names give the same first group (or whole match) are of one group.

    Returns:
        A group number per scene. Without `distance` and `regex`, each scene is its own.

    Raises:
        ValueError: If a scene has no place but `distance` is given, or its name does not match.
    """
    parents = list(range(len(names)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    if regex is not None:
        first: dict[str, int] = {}
        for index, key in enumerate(_regex_keys(names, regex)):
            parents[root(index)] = root(first.setdefault(key, index))
    if distance is not None:
        for one, other in _close_pairs(names, footprints, distance):
            parents[root(one)] = root(other)
    roots = [root(index) for index in range(len(names))]
    numbers = {number: position for position, number in enumerate(dict.fromkeys(roots))}
    return [numbers[number] for number in roots]


def _regex_keys(names: Sequence[str], regex: str) -> list[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"--group-regex {regex!r} is not a regular expression: {error}.") from error
    matches = [pattern.search(name) for name in names]
    unmatched = [name for name, match in zip(names, matches, strict=True) if match is None]
    if unmatched:
        raise ValueError(f"--group-regex {regex!r} does not match {unmatched[:5]} ({len(unmatched)} scenes in all).")
    return [match.group(1) if pattern.groups and match.group(1) is not None else match.group(0) for match in matches]


def _close_pairs(
    names: Sequence[str], footprints: Sequence[tuple[Georeference | None, tuple[int, int]]], distance: float
) -> list[tuple[int, int]]:
    """Pairs of scenes with less than `distance` metres between their bounding boxes."""
    if distance < 0:
        raise ValueError(f"--group-distance is {distance}; expected metres, 0 or more.")
    placeless = [name for name, (place, _) in zip(names, footprints, strict=True) if place is None or not place.crs]
    if placeless:
        raise ValueError(
            f"--group-distance needs georeferenced scenes with a CRS; {placeless[:5]} have none ({len(placeless)} in "
            "all). Group by name with --group-regex."
        )
    systems = {place.crs for place, _ in footprints}
    units = {crs: metres_per_unit(crs) for crs in systems}
    if len(systems) == 1 and None not in units.values():
        metres = next(iter(units.values()))
        boxes = np.array([place.bounds(size) for place, size in footprints]) * metres
        scale = np.ones(len(boxes))
    else:  # several zones, or degrees: compare on a sphere, good to half a percent near each other
        degrees = np.array([lonlat_bounds(place, size) for place, size in footprints])
        boxes = degrees * _METRES_PER_DEGREE
        scale = np.cos(np.deg2rad((degrees[:, 1] + degrees[:, 3]) / 2))
    pairs = []
    for index in range(len(boxes) - 1):
        rest = boxes[index + 1 :]
        gap_x = np.maximum(rest[:, 0] - boxes[index, 2], boxes[index, 0] - rest[:, 2]).clip(0) * scale[index]
        gap_y = np.maximum(rest[:, 1] - boxes[index, 3], boxes[index, 1] - rest[:, 3]).clip(0)
        pairs += [(index, index + 1 + int(other)) for other in np.flatnonzero(np.hypot(gap_x, gap_y) < distance)]
    return pairs


def choose_validation(groups: Sequence[int], sizes: Sequence[int], fraction: float, seed: int) -> list[bool]:
    """Draw whole groups for validation until they hold about `fraction` of the rows.

    Args:
        groups: Group number per scene.
        sizes: Rows per scene.
        fraction: Wanted share of the rows, in (0, 1).
        seed: Decides the order of the draw.

    Returns:
        Per scene, whether it is validation. At least one group is on each side.

    Raises:
        ValueError: If the fraction is out of range or there is only one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--val-fraction is {fraction}; expected a share between 0 and 1.")
    totals = np.bincount(groups, weights=sizes)
    if len(totals) < 2:
        raise ValueError(
            "All training scenes are in one group, so none can be set aside for validation. Reduce --group-distance, "
            "change --group-regex, or give the scenes split folders."
        )
    target = fraction * totals.sum()
    chosen: set[int] = set()
    taken = 0.0
    for group in np.random.default_rng(seed).permutation(len(totals)).tolist():
        # Taken if that brings the sum nearer to the target.
        if len(chosen) < len(totals) - 1 and abs(taken + totals[group] - target) < abs(taken - target):
            chosen.add(group)
            taken += totals[group]
    if not chosen:
        chosen.add(int(np.argmin(totals)))
    return [group in chosen for group in groups]
