"""All that travels with a checkpoint: configuration, model, losses, processor, pipeline; one flat folder.

Imports nothing else of this package, and third parties only as every machine that loads a checkpoint has them.
"""
