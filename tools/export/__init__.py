"""Exports the network of a checkpoint to the runtimes that people deploy on: ``python -m tools.export``."""
