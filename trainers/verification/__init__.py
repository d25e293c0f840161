"""The check before a run: the Trainer's gradient against one computed row by row in float64."""
