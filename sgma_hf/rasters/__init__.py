"""Rasters on Earth: values, gaps and places, on one grid; the only room with rasterio. Imports `model` and `data`."""
