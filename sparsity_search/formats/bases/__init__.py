"""Shared parts of formats."""
