"""Base classes and shared mathematics of allocators."""
