"""Maps of many scenes: who has which one, what came of it, and the table of all.

Enter at `many.predict_scenes`.
"""
