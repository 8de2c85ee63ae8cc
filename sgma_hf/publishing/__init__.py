"""What is said about a model: results, training record, model card, digest of the weights, pushing."""
