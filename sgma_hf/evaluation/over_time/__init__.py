"""Scores over time: of the rows of a video or place, one after the other."""
