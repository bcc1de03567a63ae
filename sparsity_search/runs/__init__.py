"""Run directories: what a search leaves, how it is read again."""
