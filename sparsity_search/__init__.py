"""Finds how much to prune each layer of a language model."""

__version__ = "0.1.0"
