"""Rasters on Earth: values, gaps and places, on one grid; the only room with rasterio.

Imports `model` and `data`. Enter at `scene.RasterScene`, which reads windows of several modalities on one grid, or at
`files.read_raster`. `sources.WarpedSource` is the one way to another grid, `grids` the geometry between two of them,
`bands` what a person writes behind a file's name. What a new kind of file says of itself is read in `files`.
"""
