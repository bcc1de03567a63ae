"""Loading, saving and offloading models."""
