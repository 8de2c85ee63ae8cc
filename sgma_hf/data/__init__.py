"""A row of a data set: how it is written, read, checked and cut into windows. Imports `model`."""
