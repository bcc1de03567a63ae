"""Measures of a budget: one file is one plugin, and its file name is its name."""
