"""All that travels with a checkpoint: configuration, model, losses, processor, pipeline; one flat folder.

Imports nothing else of this package, and third parties only as every machine that loads a checkpoint has them.
Enter at `modeling_sgma`; `layers_sgma` and `fusion_sgma` hold the method, `cells_sgma` the way from cells to pixels,
and `image_transforms_sgma.valid_pixels` says what is missing. A fusion is a subclass of `fusion_sgma.SgmaFusion` with
a name from `register_fusion`; CONTRIBUTING.md has the recipe.
"""
