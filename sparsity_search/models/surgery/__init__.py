"""Changing the shape of a model: removing and merging parts."""
