"""Scores of models and maps: integer counts of pixels, divided once, at the end.

It may import model, data, visualization, rasters, publishing and prediction: nothing that trains.
Enter at `combinations` for rows and at `scenes` for rasters of any size; `prepared_rows` has the loop of all of them.
To add an evaluation, iterate `PreparedBatches` inside `evaluating(model)`, add up integers, and divide in the end.
"""
