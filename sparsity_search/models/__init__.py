"""Models: loading, prunable weights, and running them block by block."""
