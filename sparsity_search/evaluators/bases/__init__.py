"""Shared parts of evaluators."""
