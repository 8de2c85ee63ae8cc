"""Pictures for people: palettes, boards, charts. Imports `model` and `data`."""
