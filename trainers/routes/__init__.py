"""The ways by which weights get into a loss: which one serves depends on where the model computes it."""
