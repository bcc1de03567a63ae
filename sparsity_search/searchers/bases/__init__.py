"""Shared parts of searchers."""
