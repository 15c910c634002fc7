"""Feeds damaged files to what reads files: ``python -m tools.fuzz``."""
