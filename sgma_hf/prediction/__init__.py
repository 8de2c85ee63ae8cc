"""From a model and rasters to maps of any size, and why a pixel got its class."""
