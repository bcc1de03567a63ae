"""Allocators: a profile from the dense model and its statistics, in one shot."""
