"""Searchers: candidates to try next, from what was measured so far. Numbers only, no torch."""
