"""What the converters of the public data sets share."""
