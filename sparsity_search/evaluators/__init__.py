"""Evaluators: scores of pruned models. Lower is better."""
