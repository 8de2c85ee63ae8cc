"""Reads a raster on the extent of a reference grid, in its own resolution where that fits: `read_on_extent`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.windows import Window
from .bands import BandGaps
from .files import read_raster
from .grids import Grid, check_crs, check_proportions, edges_of, lie_apart, no_overlap, pixel_steps, whole_pixels
from .raster import Georeference, Raster, RasterInfo
from .sources import Mosaic, PixelMask


_SAME_SIZE = 1.05  # reference pixels to one of a raster, up to which they count as equally large


def read_on_extent(
    info: RasterInfo,
    grid: Georeference | None,
    size: tuple[int, int],
    *,
    nodata: Sequence[float] = (),
    use_declared_nodata: bool = True,
    gaps: BandGaps | None = None,
    mask: PixelMask | None = None,
) -> Raster:
    """Read a raster so that it covers exactly the extent of a reference grid, in its own resolution where that fits.

    Where both have a place on Earth: a raster of the same extent is read as it is, one whose pixels line up with the
    extent is cropped, both without touching a value; else it is interpolated (bilinear) onto the extent, as
    `RasterScene` does it: at the reference's pixels, or, where its own are larger, in cells of about their size.
    Where it does not reach, it holds no data, and what holds no data never blends into its neighbours. Where one of
    them has no place, both are taken to show the same extent.

    `grid` and `size` (height, width) are the reference's; the raster's size may differ, its extent does not. `nodata`
    stands for nothing besides the declared value, `gaps` is told what each band lacks, `mask` hides pixels. Raises
    ValueError if the two do not overlap, or, without georeferencing, have different proportions.
    """
    missing = {"nodata": nodata, "use_declared_nodata": use_declared_nodata, "gaps": gaps, "mask": mask}
    check_extent(info, grid, size)
    if grid is None or info.georeference is None:
        return read_raster(info.path, bands=info.bands, **missing)
    reference = Grid(size, grid)
    window = _aligned_window(info, reference)
    if window is not None:
        return read_raster(info.path, bands=info.bands, window=window, **missing)
    # The extent in cells of the raster's own size: so many reference pixels is one high and wide, at least 1.
    cells = np.maximum(1, 1 / np.linalg.norm(pixel_steps(info, reference), axis=0))
    cells[cells < _SAME_SIZE] = 1  # or a row would not hold what a map is made from
    shape = tuple(max(1, round(side / cell)) for side, cell in zip(size, cells.tolist(), strict=True))
    target = Grid(shape, grid.scaled(size[0] / shape[0], size[1] / shape[1]))
    with Mosaic([info], target, "bilinear", **missing) as files:
        raster = files.read(Window(0, 0, *shape))
    raster = raster or Raster.empty(shape, info.channels, info.dtype)
    return replace(raster, georeference=target.georeference)


def check_extent(info: RasterInfo, grid: Georeference | None, size: tuple[int, int]) -> None:
    """Raise the ValueError of `read_on_extent` if a raster does not belong to the reference, without reading it."""
    if grid is None or info.georeference is None:
        check_proportions(info, size)
        return
    check_crs(info, grid)
    if lie_apart(info, Grid(size, grid)):
        raise ValueError(no_overlap(info, Grid(size, grid)))


def covers_whole_pixels(info: RasterInfo, grid: Georeference | None, size: tuple[int, int]) -> bool:
    """Whether `read_on_extent` will take whole pixels of the file for all of the extent, so that it makes no holes."""
    if grid is None or info.georeference is None:
        return True
    window = _aligned_window(info, Grid(size, grid))
    return window is not None and window == window.inside(info.size)


def _aligned_window(info: RasterInfo, grid: Grid) -> Window | None:
    """As `whole_pixels`, or all of the raster where edges are off by less than a quarter of a pixel from its own."""
    edges = edges_of(grid, info)
    if edges is None:
        return None
    whole = np.array([0.0, 0.0, *info.size])
    quarter = 0.25 * np.tile((edges[2:] - edges[:2]) / grid.size, 2)
    if (np.abs(edges - whole) <= np.minimum(quarter, 0.25)).all():
        return Window(0, 0, *info.size)
    return whole_pixels(info, grid)
