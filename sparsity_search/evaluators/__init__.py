"""Proxy evaluators: how far a pruned model is from the dense one. Lower is better."""
