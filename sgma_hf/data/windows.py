"""Windows that together cover an image."""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A rectangle of pixels: `top` and `left` counted from the north-west corner, from 0."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index the last two axes of an array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def window_starts(length: int, size: int, stride: int | None = None) -> list[int]:
    """Where windows start along an axis; the last one is shifted back so that it ends with the axis.

    Args:
        length: Pixels along the axis.
        size: Pixels of a window; where that is more than there are, there is one window.
        stride: Pixels between starts, 1 to `size`, which is the default.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> window_starts(10, 4, 3)
        [0, 3, 6]
        >>> window_starts(11, 4, 3)
        [0, 3, 6, 7]
    """
    stride = size if stride is None else stride
    if size < 1 or not 1 <= stride <= size:
        raise ValueError(f"Windows of {size} pixels every {stride}: expected a positive size, and 1 to it as stride.")
    return [*range(0, max(0, length - size), stride), max(0, length - size)]


def cover(size: tuple[int, int], window: int | None, stride: int | None = None) -> Iterator[Window]:
    """Windows that together cover an image, row by row.

    Args:
        size: (height, width) of the image in pixels.
        window: Side of a window in pixels; None gives the whole image as one. A side of the image that is shorter
            gives shorter windows.
        stride: Pixels from one window to the next, 1 to `window`, which is the default. The last window of a row or
            column is shifted back inside, so it may overlap more.

    Raises:
        ValueError: If a number is out of range.
    """
    if window is None:
        yield Window(0, 0, *size)
        return
    for top in window_starts(size[0], window, stride):
        for left in window_starts(size[1], window, stride):
            yield Window(top, left, min(window, size[0]), min(window, size[1]))
