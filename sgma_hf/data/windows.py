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

    def moved(self, rows: int, columns: int) -> "Window":
        """The window so many rows further down and columns further right."""
        return self._replace(top=self.top + rows, left=self.left + columns)

    def inside(self, size: tuple[int, int]) -> "Window":
        """The part of it within an image of (height, width); its own height or width is 0 if there is none."""
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = min(size[0], self.top + self.height), min(size[1], self.left + self.width)
        return Window(top, left, max(0, bottom - top), max(0, right - left))


def blocks(size: tuple[int, int], height: int, width: int | None = None) -> Iterator[Window]:
    """Windows that cover an image of `size` (height, width) without overlap, row by row, less large at its end.

    They are `height` pixels high and `width` wide; None gives strips as wide as the image.
    """
    for top in range(0, size[0], height):
        for left in range(0, size[1], width or size[1]):
            yield Window(top, left, height, width or size[1]).inside(size)


def window_starts(length: int, size: int, stride: int | None = None) -> list[int]:
    """Where windows start along an axis; the last one is shifted back so that it ends with the axis.

    The stride is 1 to `size`, which is the default. Where `size` is more than `length`, there is one window.

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
    """Windows that together cover an image of `size` (height, width), row by row.

    They are `window` pixels wide and high, less where the image is; None gives the whole image as one. They start as
    `window_starts` says, so the last of a row or column may overlap more.
    """
    if window is None:
        yield Window(0, 0, *size)
        return
    for top in window_starts(size[0], window, stride):
        for left in window_starts(size[1], window, stride):
            yield Window(top, left, min(window, size[0]), min(window, size[1]))
