"""Compares the scenes of a data set whose names are not all known with the published numbers."""

from collections import Counter
from collections.abc import Callable, Sequence

from .dataset import Problem, Scene, SplitProtocol


def fewer_than_published(
    protocol: SplitProtocol, scenes: Sequence[Scene], remedy: Callable[[str], str]
) -> list[Problem]:
    """Splits that have fewer scenes than were published.

    Args:
        protocol: With the published numbers.
        scenes: What was found.
        remedy: What to do, by split.
    """
    found = Counter(scene.split for scene in scenes)
    return [
        Problem("missing", f"split {split}", f"{found[split]} of {count} published scenes are there", remedy(split))
        for split, count in protocol.num_scenes.items()
        if found[split] < count
    ]
