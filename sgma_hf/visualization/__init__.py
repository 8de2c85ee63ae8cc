"""Pictures for people: palettes, boards, charts. Imports `model` and `data`; the only room with matplotlib.

Enter by `boards.plot_modality_board`, or by `palette.colorize`, which needs NumPy alone. `charts` draws runs.
A board's row is a heading and panels, each a title and a function that draws into given axes.
"""
