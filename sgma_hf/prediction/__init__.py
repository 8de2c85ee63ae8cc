"""From a model and rasters to maps of any size, and why a pixel got its class."""

# What can be written beside the classes of a map.
EXTRAS = ("confidence", "probabilities", "robustness", "decision", "agreement")
