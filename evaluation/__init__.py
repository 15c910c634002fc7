"""Evaluation and prediction: engines that compute logits, the loop that feeds them and counts errors, the cache of images."""
