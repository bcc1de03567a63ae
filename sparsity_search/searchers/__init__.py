"""Searchers: propose the next candidates from the measurements so far. No torch."""
