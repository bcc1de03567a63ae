"""Base classes and shared parts of sensitivities."""
