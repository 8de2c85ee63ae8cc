"""Which rasters there are of which scenes: a folder says it by names, a table by columns, a catalogue by assets.

Enter at `sources.list_scenes`.
"""
