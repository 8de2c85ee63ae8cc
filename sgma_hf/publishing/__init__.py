"""What is said about a model: results, training record, model card, digest of the weights, pushing.

Imports `model` and `data`. Enter by `model_card.build_model_card` and `push.push_dataset`. `record` is what a run
keeps of itself, from which the card is written by `model_card_template.md`; every Markdown table is by `tables`.
"""
