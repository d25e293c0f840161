"""A loop of our own, for people without a Trainer: the same weights in plain PyTorch and Lightning."""
