"""Profiles and their parts: units, counts of zeros, the budget, patterns, measured scores."""
