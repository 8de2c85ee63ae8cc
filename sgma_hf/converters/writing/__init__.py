"""Rows into Parquet shards, with statistics and a card."""
