"""Trackers: tools that keep experiments, one file each."""
