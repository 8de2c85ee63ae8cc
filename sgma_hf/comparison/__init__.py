"""Comparisons: what each part of the method earns, on one data set, against baselines trained in the same way."""
