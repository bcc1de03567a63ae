"""Runs of a model block by block, and the data gathered from them."""
