"""Scores over every combination of modalities; scenes, agreement, damaged inputs, reliance."""
