"""Training by the published recipe: `train.train` is the way in."""
