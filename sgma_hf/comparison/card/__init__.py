"""From the lines of `sgma-hf compare` to tables and figures, each of which can be computed again from the lines.

Enter at `report.make_card`. Figures and tests over seeds and tiles are in `statistics`, what is drawn in `figures`
(from the lines alone) and `model_figures` (from kept models). To add a table, yield it from `report.tables_of`.
"""
