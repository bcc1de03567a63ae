"""Base classes and shared mathematics of pruners."""
