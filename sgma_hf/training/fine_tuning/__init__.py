"""Training that goes on from pretrained weights: which of them learn, and how fast."""
