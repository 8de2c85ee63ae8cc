"""Readers of rasters on disk, and a generator of procedural ones, that write the one row format as Parquet."""
