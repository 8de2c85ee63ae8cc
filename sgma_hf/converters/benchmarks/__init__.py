"""What the readers of the public data sets share: the driver that checks, converts, shows and pushes any of them.

It may import what `converters` may, and `converters/folders` and `converters/writing`; of the readers it knows none.
Enter at `dataset.py`, which says what a data set is, then at `command.py`, which says what is done with one.
To add what a conversion can do, add an option to `ConversionOptions`, a flag to `command.py`, and a line to `card.py`.
Rows are made in `rows.py`, in `converter.py` on their way to Parquet and in `builder.py` on their way to `datasets`.
"""
