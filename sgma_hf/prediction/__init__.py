"""From a model and rasters to maps of any size, and why a pixel got its class.

Imports the rooms from `model` to `publishing`. Enter at `maps.predict_raster`, or at `sliding_window` for tensors.
To write one more raster beside a map, name it in `EXTRAS`, say in `map_files` which bands it has, and fill it where
`maps` fills the others.
"""

# What can be written beside the classes of a map.
EXTRAS = ("confidence", "probabilities", "robustness", "decision", "agreement", "reliance_month", "reliance_day")
