"""How folders of rasters are read as scenes: modalities, labels, groups, tiles; and what is said before."""
