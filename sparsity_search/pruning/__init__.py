"""Pruning a whole model to a profile."""
