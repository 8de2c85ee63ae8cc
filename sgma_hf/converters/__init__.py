"""Readers of rasters on disk, and a generator of procedural ones, that write the one row format as Parquet.

It may import model, data, visualization, rasters and publishing: nothing that predicts, scores or trains.
Enter at a file of this folder: one per public data set, `raster_folders` for a person's own, `demo_scenes`.
To add a data set, write a file like `deliver.py`: a `DatasetDescription` with the source of every fact, a reader with
`find` and `read_file`, a builder and `main`; name it in `commands/__init__.py` and give it a script.
"""
