"""A page to try a model on: switch modalities off, cut gaps into them, ask why a pixel got its class.

Imports the rooms up to `converters`. Enter at `page.build_page`, which alone knows gradio (extra `app`). What is shown
is decided without it: `sights` reads and encodes what is looked at, `answers` predicts from it, `panels` draws that.
To show one more thing, give `Answer` a field and `panels` a picture of it.
"""
