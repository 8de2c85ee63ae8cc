"""Training on transformers' `Trainer`: arguments, collator, sampling of rows, statistics, checkpoints."""
