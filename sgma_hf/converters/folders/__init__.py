"""How folders of rasters are read as scenes: layout, modalities, labels, groups, tiles; and what is said before."""
