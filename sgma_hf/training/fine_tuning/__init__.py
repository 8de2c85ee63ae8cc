"""Training that goes on from pretrained weights: which of them learn, how fast, and what is kept of them."""
