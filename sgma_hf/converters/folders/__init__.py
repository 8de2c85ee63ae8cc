"""How folders of rasters are read as scenes: layout, modalities, classes, groups, tiles."""
