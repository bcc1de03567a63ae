"""Helpers without a subject of their own: files, random numbers, bisection."""
