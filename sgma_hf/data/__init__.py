"""A row of a data set: how it is stored, read, checked and cut into windows. Imports `model`.

Enter by `rows.load_rows` and `rows.decode_row`. `codec` stores a raster without losing a bit, `metadata` says what its
values mean, `class_maps` which label values mean which class, `windows` covers an image, `processor_fitting` takes a
processor's statistics from rows, `value_scale` tells rows in another unit, `incomplete_rows` takes sensors away on
purpose, `whole_files` writes a file as a whole or not at all, `evaluation_mode` is for whoever predicts rows, and
`command_line` is what all commands share. A dtype that rows may have is added to `codec.SUPPORTED_DTYPES`.
"""
