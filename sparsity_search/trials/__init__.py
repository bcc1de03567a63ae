"""Measurements: histories, ladders of rungs, and their store."""
