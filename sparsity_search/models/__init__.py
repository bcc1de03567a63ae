"""Models: loading, prunable weights, and runs block by block."""
