"""Moves bytes between two ends of a flow. One engine per worker process, several paths."""
