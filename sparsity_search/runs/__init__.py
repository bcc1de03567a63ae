"""Folders that searches and comparisons leave: their files, and records read from them."""
